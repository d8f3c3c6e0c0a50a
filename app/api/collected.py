"""The response to a client that asked for no stream: the whole answer as JSON, or an HTTP error."""

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from app.api import problems
from app.api.response import StreamResponse
from app.errors import RelayError
from app.events import Done, Failed
from app.wire.completion import Completion
from app.wire.dialect import MAX_WRITE_BYTES, failure_of


class CollectedResponse(StreamResponse):
    """Reads as every reader does, and says nothing before the end: a departure is noticed all the same."""

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if problem := self._crowded():
            return await self._refuse(problem, scope, receive, send)
        try:
            return await self._collect(Completion(), scope, receive, send)
        except RelayError as error:
            await self._refuse(problems.identified(error.problem, Request(scope)), scope, receive, send)

    async def _collect(self, completion: Completion, scope: Scope, receive: Receive, send: Send) -> None:
        reader, log = self._reader, self._reader.log
        while log.closed is None or reader.behind:
            if log.broken:
                return await self._break_off(send)
            if events := reader.peek():
                completion.receive(events)
                reader.advance(len(events))
                if reader.behind:
                    await self._turns.take()
            elif log.closed is None:
                await reader.wait()
            else:
                return await self._break_off(send)
            if not self.active:
                return None
        return await self._finish(completion, log.closed, scope, receive, send)

    async def _finish(
        self, completion: Completion, terminal: Done | Failed, scope: Scope, receive: Receive, send: Send
    ) -> None:
        problem = failure_of(terminal)
        if problem is None:
            self._look()
            await self._whole(completion.document(self._stream.usage()), send)
        else:  # what came before it was not delivered to this client
            told = msgspec.structs.replace(problem, partial=False, request_id=self._stream.request_id)
            await self._refuse(told, scope, receive, send)

    async def _whole(self, document: bytes, send: Send) -> None:
        """In pieces: `send` waits before it writes, so a client that takes nothing is noticed at the second."""
        self.headers.update({"content-type": "application/json", "content-length": str(len(document))})
        await self._send(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        for at in range(0, len(document), MAX_WRITE_BYTES):
            rest = at + MAX_WRITE_BYTES < len(document)
            await self._write(send, document[at : at + MAX_WRITE_BYTES], more=rest)
