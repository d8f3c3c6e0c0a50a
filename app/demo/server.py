"""The demo upstream's HTTP: its routes, and a server for them inside the loop of whoever wants one."""

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import Generator, Iterator
from http import HTTPStatus
from typing import Final

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Send

from app.demo.completion import Beat, beats
from app.demo.models import BY_NAME, MODELS, Model
from app.demo.question import Question, asked
from app.demo.refusals import Refused, Words, refused, unknown_model

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
MAX_REMEMBERED: Final = 1024
"""Questions that demo-flaky has failed once; older ones are forgotten, and fail again."""

KEEP_ALIVE_SECONDS: Final = 75
"""Longer than clients keep idle connections (the relay 60 s), so that it is never the server that closes one
just as a request sets out on it."""

STOP_SECONDS: Final = 1
"""For answers to notice that their connection was cut: they do at once."""

CREATED: Final = 1_700_000_000


def create_demo_app() -> Starlette:
    """An OpenAI-compatible ASGI app. The model's name shapes the answer: see `app.demo.models`."""
    door = _Door()
    return Starlette(
        routes=[
            Route("/v1/chat/completions", door.complete, methods=["POST"]),
            Route("/v1/models", _models),
            Route("/v1/models/{name}", _model),
            Route("/healthz", _healthy),
        ],
        exception_handlers={Refused: _refuse, HTTPException: _refuse_route, ClientDisconnect: _nobody},
        max_body_size=MAX_BODY_BYTES,
    )


class DemoServer:
    """The demo on a loopback port, inside the running loop; signals stay their owner's."""

    def __init__(self, port: int = 0) -> None:
        """Port 0 is a free one."""
        self._port = port
        config = uvicorn.Config(
            create_demo_app(),
            lifespan="off",
            ws="none",
            log_config=None,  # logging belongs to the process, not to a guest in it
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
        self._server = _GuestServer(config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Returns the base URL. Connections wait in the listener's queue until they are served. Raises OSError."""
        listener = socket.create_server(("127.0.0.1", self._port))
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]), name="demo upstream")
        return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"

    async def stop(self) -> None:
        """At once (uvicorn looks every 0.1 s), cutting what is open."""
        if self._serving is not None:
            self._server.should_exit = True
            await self._serving

    @property
    def active(self) -> int:
        """Requests being answered."""
        return len(self._server.server_state.tasks)


class _GuestServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Cuts what is open: uvicorn would wait for it, and some of our streams never end."""
        for listener in self.servers:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        if answering := list(self.server_state.tasks):
            await asyncio.wait(answering, timeout=STOP_SECONDS)


class _Played(StreamingResponse):
    """Plays beats. The head leaves with the first of them, as a real upstream's does: demo-hang never gets so far."""

    def __init__(self, played: Iterator[Beat], media_type: str) -> None:
        super().__init__((), media_type=media_type)
        self._beats = played

    async def stream_response(self, send: Send) -> None:
        headed = False
        for beat in self._beats:
            await _pause(beat.pause_seconds)
            if not headed:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                headed = True
            await send({"type": "http.response.body", "body": beat.data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _pause(seconds: float | None) -> None:
    if seconds is None:
        await asyncio.Event().wait()
    else:
        await asyncio.sleep(seconds)


class _Door:
    """Lets a question in or refuses it; remembers whom it has refused once."""

    def __init__(self) -> None:
        self._refused_once: dict[bytes, None] = {}

    async def complete(self, request: Request) -> Response:
        question = asked(await request.body())
        model = _known(question.model)
        if status := self._refusal(model, question):
            raise refused(status)
        played = _Played(beats(model, question), "text/event-stream" if question.stream else "application/json")
        if model.end == "cut":
            played.headers["connection"] = "close"
        return played

    def _refusal(self, model: Model, question: Question) -> int | None:
        if model.end == "error" and not question.stream:
            return HTTPStatus.INTERNAL_SERVER_ERROR
        if model.once and self._comes_again(question):
            return None
        return model.status

    def _comes_again(self, question: Question) -> bool:
        messages = hashlib.sha256(msgspec.json.encode(question.messages)).digest()
        if messages in self._refused_once:
            del self._refused_once[messages]
            return True
        if len(self._refused_once) >= MAX_REMEMBERED:
            del self._refused_once[next(iter(self._refused_once))]
        self._refused_once[messages] = None
        return False


def _known(name: str) -> Model:
    try:
        return BY_NAME[name]
    except KeyError:
        raise unknown_model(name) from None


def _as_json(model: Model) -> dict[str, object]:
    return {"id": model.name, "object": "model", "created": CREATED, "owned_by": "sse-relay"}


async def _models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_as_json(model) for model in MODELS]})


async def _model(request: Request) -> Response:
    return JSONResponse(_as_json(_known(request.path_params["name"])))


async def _healthy(request: Request) -> Response:
    return PlainTextResponse("ok")


async def _refuse(request: Request, failure: Exception) -> Response:
    assert isinstance(failure, Refused)
    return JSONResponse(failure.as_json(), failure.status, failure.headers)


async def _refuse_route(request: Request, failure: Exception) -> Response:
    assert isinstance(failure, HTTPException)
    words = Words(
        f"{HTTPStatus(failure.status_code).phrase} ({request.method} {request.url.path})", "invalid_request_error"
    )
    return JSONResponse(Refused(failure.status_code, words).as_json(), failure.status_code, failure.headers)


async def _nobody(request: Request, failure: Exception) -> Response:
    """The client left before its request was whole; uvicorn throws this answer away."""
    return Response(status_code=HTTPStatus.BAD_REQUEST)
