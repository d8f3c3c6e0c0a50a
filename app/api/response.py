"""One reader's response: it pulls entries by cursor and writes them in the shape it was asked for.

- The status line is held until upstream has begun to answer or has failed, `hold_s` at most: a failure before it is a
  real HTTP status, one after it an event.
- Whether the client is still there is known from the first moment, also while nothing has been sent
  (connection.py), and the reader is woken. What that means for the generation is not decided here.
- One timer serves heartbeat, send timeout and the longest age. It is not moved by a token: when it fires it looks
  at when something was last written.
- A client that takes nothing is cut off; one that lives too long is sent off without `[DONE]`, so that it comes back.

It is an `EventSourceResponse` with what runs per event replaced: the library's own costs an anyio scope and two debug
calls for each, and four tasks for a stream.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from sse_starlette.sse import EventSourceResponse
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from app.api import problems
from app.api.connection import abort, watch_departure, writer
from app.api.manners import Manners
from app.api.unwinding import LASTING
from app.errors import Problem
from app.events import Done, Event, Failed
from app.log.reader import TAKE_ENTRIES, Reader
from app.stream import Stream
from app.streams import too_many_readers
from app.turns import Turns
from app.wire.dialect import HEADERS, Encoder

PASSED_ON: Final = ("x-stream-id", "set-cookie")
"""Headers of the stream that a refusal in its place has as well."""


class StreamResponse(EventSourceResponse):
    """Reads until the stream ends or the client goes. `known` tells that the client can find the stream again."""

    def __init__(
        self,
        stream: Stream,
        reader: Reader,
        encoder: Encoder,
        manners: Manners,
        turns: Turns,
        *,
        hold_s: float,
        known: bool,
        headers: Mapping[str, str],
    ) -> None:
        # Not the library's own way: a lock, an iterator and headers of what is replaced were a thirtieth of opening.
        self.status_code, self.background, self.active = 200, None, True
        own = ((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items())
        self.raw_headers = [*HEADERS, *own]
        self._loop = asyncio.get_running_loop()
        self._stream = stream
        self._reader = reader
        self._encoder = encoder
        self._manners = manners
        self._turns = turns
        self._hold_s = hold_s
        self._known = known
        self._holding = self._ping_due = self._too_old = self._cut_off = False
        self._blocked_since: float | None = None
        self._unsent = b""
        self._written_at = self._began = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """At once, or where there is a place for what lasts, there; nothing is waited for in between."""
        lasting = scope.get(LASTING)
        if lasting is None:
            await self._answer(scope, receive, send)
        else:
            lasting.append(partial(self._answer, scope, receive, send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        no_longer = watch_departure(scope, receive, self._depart, name=self._stream.id)
        self._task, self._scope = asyncio.current_task(), scope
        try:
            await self._serve(scope, receive, send)
        except asyncio.CancelledError:
            if not self._cut_off or self._task is None:
                raise
            self._task.uncancel()
            await abort(scope)
        finally:
            no_longer()
            if self._timer is not None:
                self._timer.cancel()
            self._stream.leave(self._reader, may_return=self._known)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = (await self._held() if self._hold_s else None) or self._crowded()
        if problem is not None:
            await self._refuse(problem, scope, receive, send)
            if self.active:
                self._reader.skip()  # the client knows how it ended
        elif self.active:
            await self._stream_response(send)

    def _depart(self) -> None:
        self.active = False
        self._reader.wake()

    async def _held(self) -> Problem | None:
        """Waits for upstream's first content, at most `hold_s`; the failure that came instead, if one did."""
        log = self._reader.log
        self._holding = True
        timer = self._loop.call_later(self._hold_s, self._let_go)
        try:
            while self._holding and self.active and not log.carrying and not log.broken and log.closed is None:
                await self._reader.wait()
        finally:
            timer.cancel()
        return log.closed.error if isinstance(log.closed, Failed) and not log.carrying else None

    def _crowded(self) -> Problem | None:
        """A reader that was held begins to count."""
        readers = self._stream.readers
        if self._reader.held and readers >= self._manners.max_readers:
            return too_many_readers(readers).problem
        self._reader.held = False
        return None

    def _let_go(self) -> None:
        self._holding = False
        self._reader.wake()

    async def _refuse(self, problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
        response = problems.answer(problem, events=problems.wants_events(Request(scope)))
        response.headers.update({name: self.headers[name] for name in PASSED_ON if name in self.headers})
        await response(scope, receive, send)

    async def _stream_response(self, send: Send) -> None:
        self._look()
        await self._send(send, {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._known = True
        self._ping_due = True  # with nothing to say a head alone would stay in nginx's TLS buffer over HTTP/2
        reader, log, self._write_at_once = self._reader, self._reader.log, writer(self._scope)
        while self.active:
            if self._too_old or log.broken:
                return await self._break_off(send)
            if events := reader.peek():
                if await self._pass_on(events, send):
                    return None
            elif log.closed is not None:
                return await self._end(log.closed, send)
            elif self._ping_due:
                await self._write(send, self._encoder.ping(self._stream.waiting, self._stream.elapsed_s))
            else:
                await self._rest(send)
        return None

    async def _pass_on(self, events: Sequence[Event], send: Send) -> bool:
        """Whether these were the last."""
        reader, log = self._reader, self._reader.log
        body, count = self._encoder.encode(reader.cursor + 1, events, log.live_from)
        reader.advance(count)
        if log.closed is not None and not reader.behind:
            await self._write(send, body + self._encoder.end(log.closed), more=False)
            return True
        if body:
            await self._write(send, body)
        if reader.behind:
            await self._turns.take()  # `send` waits for nothing while the socket takes all: let others go
        return False

    async def _end(self, terminal: Done | Failed, send: Send) -> None:
        if self._reader.behind:
            await self._break_off(send)  # the missing entries were taken away: no good end over a gap
        else:
            await self._write(send, self._encoder.end(terminal), more=False)

    async def _rest(self, send: Send) -> None:
        """Until there is more to do than to write what comes."""
        await self._reader.wait(self._carry)
        if self._unsent:
            body, self._unsent = self._unsent, b""
            await self._write(send, body)

    def _carry(self) -> bool:
        """Writes what has come, where it comes: no task is woken for a token. False for what takes more than that."""
        reader, log = self._reader, self._reader.log
        if log.closed is not None or self._ping_due or self._too_old or log.broken or not self.active:
            return False
        events = reader.peek()
        body, count = self._encoder.encode(reader.cursor + 1, events, log.live_from)
        reader.advance(count)
        if body and not self._write_at_once(body):
            self._unsent = body
            return False
        if body:
            self._written_at = self._loop.time()
        return count == len(events) < TAKE_ENTRIES

    async def _break_off(self, send: Send) -> None:
        """Ends the response before the stream: in good order where clients know that as a loss, else as one."""
        self._scope["app"].state.parts.fleet.counts.sent_off += 1
        if self._encoder.eof_means_lost:
            await self._write(send, b"", more=False)
        else:
            await abort(self._scope)

    async def _write(self, send: Send, body: bytes, *, more: bool = True) -> None:
        await self._send(send, {"type": "http.response.body", "body": body, "more_body": more})
        self._wrote()

    def _wrote(self) -> None:
        self._ping_due = False
        self._written_at = self._loop.time()

    async def _send(self, send: Send, message: Message) -> None:
        self._blocked_since = self._loop.time()
        await send(message)
        self._blocked_since = None

    def _look(self) -> None:
        """What the timer does: cuts off a client that takes nothing, else wakes the reader where something is due."""
        now, manners = self._loop.time(), self._manners
        blocked = self._blocked_since is not None
        cut_off_at = (self._blocked_since or now) + manners.send_timeout_s
        ping_at = math.inf if blocked else self._written_at + manners.heartbeat_s
        too_old_at = self._began + manners.max_age_s if manners.max_age_s and not self._too_old else math.inf
        if blocked and now >= cut_off_at and self._task is not None:
            self._cut_off = True
            self._scope["app"].state.parts.fleet.counts.cut_off += 1
            self._task.cancel()
            return
        if now >= ping_at:
            self._ping_due, ping_at = True, now + manners.heartbeat_s
        if now >= too_old_at:
            self._too_old, too_old_at = True, math.inf
        if self._ping_due or self._too_old:
            self._reader.wake()
        self._timer = self._loop.call_at(min(cut_off_at, ping_at, too_old_at), self._look)
