"""One upstream, by AsyncOpenAI: it builds the request (auth, URL, headers), and here is named what went wrong.

Its own stream class is not used: reading the body ourselves costs a thirtieth per token, and the SDK's parser takes a
cut stream for a whole one. Its retries are off: they sleep in our process and know nothing of the caller's limits.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, cast

import httpx2
import openai
from openai._models import FinalRequestOptions

from app.decode import from_status
from app.errors import RelayError
from app.upstream.body import Body
from app.upstream.listing import Model, read_models
from app.upstream.sdk import DEPLOYMENT, Service, client_of, headers_of
from app.upstream.transport import on_sent

FINISH_SECONDS: Final = 0.1
"""How long the end of a finished answer is waited for: a body read to its end lets its connection be used again."""

MODELS_SECONDS: Final = 10.0
PROXY_AUTHENTICATION_REQUIRED: Final = 407


class Answer:
    """An upstream's answer whose head has come. Whoever has it closes it."""

    def __init__(self, response: httpx2.Response, body: Body) -> None:
        self.status: int = response.status_code
        self.content_type: str | None = body.headers.get("content-type")
        self.content_encoding: str | None = body.headers.get("content-encoding")
        self.pour, self.read, self.close = body.pour, body.read, body.close
        self._body = body

    async def finish(self) -> None:
        """Reads on to the end, if that is near: only then can the connection be used again."""
        if self._body.is_over:
            return
        with contextlib.suppress(TimeoutError, RelayError):
            async with asyncio.timeout(FINISH_SECONDS):
                while await self.read():
                    pass


class Upstream:
    """One OpenAI-compatible service."""

    def __init__(self, service: Service) -> None:
        self._service: Final = service
        self._client: Final = client_of(service)
        self._headers: Final = headers_of(service, self._client)
        # Without a key the SDK makes one up for each request, which it then does not send.
        self._asking: Final = FinalRequestOptions.construct(
            method="post", url="/chat/completions", idempotency_key="none"
        )
        self._asks_usage = service.asks_usage

    def may_serve(self, model: str) -> bool:
        """Whether a model of this name can be asked for at all."""
        return self._service.azure_api_version is None or DEPLOYMENT.fullmatch(model) is not None

    @property
    def has_list(self) -> bool:
        """Azure lists the models that could be deployed, not the deployments that can be asked for."""
        return self._service.azure_api_version is None

    async def open(
        self,
        payload: dict[str, object],
        *,
        connect_s: float,
        sent: Callable[[], None],
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Asks for a streamed answer and returns when its head is there; `sent` is called when the request has left.

        An operator's header wins over one of `headers`.
        Raises `RelayError`: a status that is no success, or `upstream_timeout` (connect), `upstream_unavailable`,
        `upstream_protocol`.
        """
        asked_usage = self._asks_usage
        try:
            return await self._open(payload, connect_s, sent, headers, ask_usage=self._asks_usage)
        except RelayError as error:
            if not (asked_usage and _refuses_usage(error)) or _has_options(payload):
                raise
        answer = await self._open(payload, connect_s, sent, headers, ask_usage=False)
        self._asks_usage = False  # only now is it known that the field was at fault, and not the name of a model
        return answer

    async def models(self) -> list[Model]:
        """Upstream's own list of its models. Raises `RelayError` as `open` does."""
        try:
            async with asyncio.timeout(MODELS_SECONDS):
                answer = await self._ask(lambda: self._get("/models"))
                try:
                    return await read_models(answer.read)
                finally:
                    answer.close()
        except TimeoutError:
            raise RelayError("upstream_timeout", "upstream took too long to list its models") from None

    async def aclose(self) -> None:
        await self._client.close()

    async def _open(
        self,
        payload: dict[str, object],
        connect_s: float,
        sent: Callable[[], None],
        headers: Mapping[str, str] | None,
        *,
        ask_usage: bool,
    ) -> Answer:
        body = payload | self._service.body | {"stream": True}
        asked = body.pop("stream_options", None)
        if ask_usage:
            body["stream_options"] = (asked if isinstance(asked, dict) else {}) | {"include_usage": True}
        token = on_sent.set(sent)
        try:
            return await self._ask(lambda: self._post(body, connect_s, headers))
        finally:
            on_sent.reset(token)

    async def _ask(self, request: Callable[[], Awaitable[httpx2.Response]]) -> Answer:
        try:
            response = await request()
        except openai.APIStatusError as error:
            refused = error.response
            if refused.status_code == PROXY_AUTHENTICATION_REQUIRED:
                raise _lost(httpx2.ConnectError("upstream cannot be reached through the proxy")) from None
            after = refused.headers.get("retry-after")
            raise from_status(refused.status_code, refused.content, after, now=datetime.now(UTC)) from None
        except openai.APITimeoutError:
            raise RelayError("upstream_timeout", "connecting to upstream took too long", phase="connect") from None
        except openai.APIConnectionError as error:
            raise _lost(error.__cause__) from None
        return Answer(response, cast(Body, response.extensions["body"]))

    async def _post(
        self, body: dict[str, object], connect_s: float, headers: Mapping[str, str] | None
    ) -> httpx2.Response:
        """What the SDK's `post` does, without filling in its form anew: that is pydantic's work for each field."""
        asked = self._asking.model_copy(
            update={
                "json_data": body,
                "headers": {**headers, **self._headers} if headers else self._headers,
                "timeout": httpx2.Timeout(None, connect=connect_s),
            }
        )
        response: Any = await self._client.request(httpx2.Response, asked, stream=True)
        return cast(httpx2.Response, response)

    async def _get(self, path: str) -> httpx2.Response:
        response: Any = await self._client.get(
            path,
            cast_to=httpx2.Response,
            options={"headers": self._headers | {"Accept": "application/json"}, "timeout": httpx2.Timeout(None)},
            stream=True,
        )
        return cast(httpx2.Response, response)


def _has_options(payload: dict[str, object]) -> bool:
    """Whether the caller sent options of its own: a refusal may be of them, and then it is the caller's."""
    options = payload.get("stream_options")
    return isinstance(options, dict) and bool(options.keys() - {"include_usage"})


def _refuses_usage(error: RelayError) -> bool:
    """Some services know no `stream_options`; the first refusal that names it is the last time it is sent."""
    return error.problem.upstream_status in (400, 422) and "stream_options" in error.problem.message


def _lost(cause: BaseException | None) -> RelayError:
    match cause:
        case httpx2.ConnectError():
            return RelayError(
                "upstream_unavailable", str(cause), phase="connect"
            )  # the transport's words, not aiohttp's
        case httpx2.RemoteProtocolError():
            return RelayError("upstream_protocol", "upstream does not speak HTTP")
        case _:
            return RelayError("upstream_unavailable", "upstream closed the connection before it answered")
