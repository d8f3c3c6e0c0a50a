"""Where the events' JSON Schema is served."""

import json
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from app.api import routing
from app.wire import schema

MEDIA_TYPE: Final = "application/schema+json"
MAX_AGE_SECONDS: Final = 3600
"""The schema is open, so that one of the version before does no harm."""

_CONTENT: Final = json.dumps(schema.document(), ensure_ascii=False, indent=2).encode()
_HEADERS: Final = {"cache-control": f"public, max-age={MAX_AGE_SECONDS}"}

router = routing.router()


@router.get("/chat/events.schema.json", summary="The JSON Schema of a stream's events")
async def events_schema(_request: Request) -> Response:
    return Response(_CONTENT, headers=_HEADERS, media_type=MEDIA_TYPE)
