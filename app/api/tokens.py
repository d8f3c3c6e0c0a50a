"""Browser tokens: an application's backend makes them, and a page exchanges one for a cookie.

An `EventSource` has no headers: with the cookie it needs none.
"""

from datetime import UTC, datetime

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.admission.credentials import Refused, bearer
from app.admission.tokens import Limits
from app.api import callers, intake, routing
from app.api.opening import NO_STORE, parts
from app.request import tokens as requests

router = routing.router()


@router.post("/tokens", summary="Make a browser token, with an API key", status_code=201)
async def post_token(request: Request) -> Response:
    door = callers.doorkeeper(request)
    minter = door.minter(callers.authorization(request), callers.address(request))
    intake.require_json(request)
    asked = requests.parse_token(await intake.read_body(request, parts(request).settings))
    limits = None if asked.limits is None else msgspec.convert(asked.limits.model_dump(), Limits)
    made = door.mint(minter, subject=asked.subject, seconds=asked.seconds, profile=asked.profile, limits=limits)
    expires_at = datetime.fromtimestamp(made.expires_at, UTC).isoformat().replace("+00:00", "Z")
    return JSONResponse({"token": made.text, "expires_at": expires_at, "seconds": made.seconds}, 201, NO_STORE)


@router.post("/session", summary="Exchange a browser token for a cookie, once", status_code=204)
async def post_session(request: Request) -> Response:
    settings = parts(request).settings
    callers.guard(request, settings.cors_origins, proof=False)
    intake.require_json(request)
    same_site = callers.same_site(request, settings)  # before the token is spent
    asked = requests.parse_session(await intake.read_body(request, settings))
    token = asked.token or bearer(callers.authorization(request))
    if token is None:
        raise Refused("missing")
    session = await callers.doorkeeper(request).exchange(token, callers.address(request))
    cookie = callers.session_cookie(request, session.text, session.seconds, same_site)
    return Response(status_code=204, headers=NO_STORE | {"set-cookie": cookie})
