"""The AG-UI dialect's endpoint, for `HttpAgent` and whatever speaks as it does."""

from starlette.requests import Request
from starlette.responses import Response

from app.api import callers, intake, opening, routing
from app.api.opening import parts
from app.request import ag_ui as requests
from app.wire.ag_ui import Events, Run

router = routing.router()


@router.post("/ag-ui", summary="Run an agent as AG-UI has it: a generation and its events")
async def post_run(request: Request) -> Response:
    settings = parts(request).settings
    visitor = await callers.visitor(request)
    intake.require_json(request)
    body = await intake.read_body(request, settings)
    asked = requests.parse(body)
    drafted = requests.draft(asked, intake.timeouts(request), intake.TIMEOUT_HEADERS, body_bytes=len(body))
    run = Run(asked.thread_id, asked.run_id, asked.parent_run_id, drafted.call_ids, drafted.skipped)
    chosen = asked.properties.on_disconnect
    opened = await opening.begin(request, visitor, drafted.draft, body, chosen=chosen, waits=False)
    return opening.stream(request, opened, Events(run), hold_s=settings.hold_status_seconds)
