"""The response to a client that asked for no stream: the whole answer as JSON, or an HTTP error."""

from functools import partial

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.response import StreamResponse
from app.wire.completion import Completion
from app.wire.dialect import failure


class CollectedResponse(StreamResponse):
    """Reads as every reader does, and says nothing before the end: a departure is noticed all the same."""

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        completion = Completion()
        reader, log = self._reader, self._reader.log
        while log.closed is None or reader.behind:
            if events := reader.peek():
                completion.receive(events)
                reader.advance(len(events))
                await self._turns.take()
            else:
                await reader.wait()
            if not self.active:
                return
        problem = failure(log.closed)
        if problem is None:
            self._look()
            await self._whole(completion)(scope, receive, partial(self._send, send))
        else:  # what came before it was not delivered to this client
            told = msgspec.structs.replace(problem, partial=False, request_id=self._generation.request_id)
            await self._refuse(told, scope, receive, send)

    def _whole(self, completion: Completion) -> Response:
        passed_on = {name: self.headers[name] for name in self.headers if name != "content-type"}
        return Response(completion.document(self._generation.usage()), 200, passed_on, "application/json")
