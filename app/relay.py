"""One generation: from the permit to the one terminal event, whoever reads it meanwhile.

The generation belongs to the relay, not to the request that began it. Readers come and go; what their going means is
one number (lingering.py).

- It ends once, in one synchronous step (`_close`): the log gets its terminal event, the clocks stop, and whoever is
  late finds the log closed and drops what it had. The task that talks to upstream is then cancelled; on its way out
  it closes the connection, which needs no await, and when it is gone the permit is released.
- Before the first carrying event a failed attempt may be repeated; after it never: a second generation would be text
  said twice and paid for twice.
- Limits are the relay's own (clocks.py). Once upstream has given a finish_reason the answer is whole, and no limit,
  reset or garbage after it makes it a failure.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import stamina
import structlog

from app.admission.permits import Caller, Permit
from app.attempt import Attempt, Terms, Upstream
from app.clocks import Clocks, Limit
from app.decode import Complete, Decoder
from app.errors import Phase, RelayError
from app.events import Done, Entry, Failed, Usage
from app.lingering import Lingering
from app.log.memory import MemoryLog
from app.log.reader import Reader
from app.request.chat import Chat
from app.retries import FIRST_RETRY_SECONDS, repeat_after
from app.stream import STOPPED, Cause, Waiting
from app.turns import Turns
from app.usage import estimate, tokens

OPERATORS_STATUSES: Final = {401, 402, 403, 409, 429}
"""With `upstream_error`: upstream refuses our key or account, which no caller can mend; an operator must hear of it."""

logger = structlog.get_logger("app.relay")


class Generation:
    """An answer being made. `start` gives it its task; it is over when that task is."""

    def __init__(
        self, chat: Chat, owner: Caller, log: MemoryLog, permit: Permit, *, id: str, request_id: str, linger_s: float
    ) -> None:
        self.id: Final = id
        self.chat = chat
        self.owner: Final = owner
        self.log: Final = log
        self.request_id: Final = request_id
        self.cause: Cause | None = None
        self.read_through = False
        self.on_spent: Callable[[str], None] = lambda _: None
        self.on_end: Callable[[Generation], None] = lambda _: None
        self.on_over: Callable[[Generation], None] = lambda _: None
        self.clocks: Final = Clocks(chat.limits, self._expired)
        self.lingering: Final = Lingering(log, linger_s, lambda: self.cancel("left"))
        self._permit = permit
        self._carried = self._text_bytes = 0
        self._attempts = 0
        self._first_carried_s: float | None = None
        self._usage: Usage | None = None
        self._attempt: Attempt | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, upstream: Upstream, terms: Terms, turns: Turns) -> None:
        self._turns = turns
        self._task = asyncio.create_task(self._run(upstream, terms), name=f"generation {self.id}")
        self._task.add_done_callback(self._over)

    @property
    def waiting(self) -> Waiting:
        """What a reader that hears nothing is waiting for."""
        if self.log.carrying:
            return "streaming"
        return "connecting" if self._attempt is None else self._attempt.waiting

    @property
    def elapsed_s(self) -> float:
        return self.clocks.elapsed_s

    @property
    def resumable(self) -> bool:
        return self.log.resumable

    @property
    def readers(self) -> int:
        """Those that are given entries now."""
        return sum(not reader.held for reader in self.log.readers)

    def usage(self) -> Usage:
        """The usage known by now: upstream's, else the larger of the pieces and a quarter of the bytes."""
        if self._usage is not None:
            return self._usage
        if self._attempt is not None and self._attempt.decoder is not None and self._attempt.decoder.usage is not None:
            return self._attempt.decoder.usage
        return estimate(tokens(self.chat.prompt_bytes), pieces=self._carried, text_bytes=self._text_bytes)

    # Readers: who reads, and what it means when nobody does.

    def attach(self, after: int) -> Reader:
        self.lingering.attached()
        return self.log.open_reader(after)

    def leave(self, reader: Reader, *, may_return: bool) -> None:
        reader.close()
        if self.log.closed is not None and not reader.behind:
            self.read_through = True
            self.on_spent(self.id)
        if not self.log.readers and self.cause is None:
            self.lingering.left(may_return=may_return)

    # Ends: the first wins.

    def cancel(self, cause: Cause = "deleted") -> None:
        """The caller wants no more: a proper end, with the usage that is known."""
        self._close(self._done("cancelled", self.usage()), cause)

    def fail(self, error: RelayError, cause: Cause = "failed") -> None:
        phase = error.problem.phase or self._phase()
        filled = msgspec.structs.replace(
            error.problem, partial=self._carried > 0, request_id=self.request_id, phase=phase
        )
        self._close(Failed(filled), cause)

    def drain(self) -> None:
        message = "the relay is shutting down"
        self.fail(RelayError("draining", message, phase="relay", retry_after_s=1.0), "drained")

    async def over(self) -> None:
        """Waits until nothing of it remains: no task, and so no connection, permit or timer."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def _complete(self, whole: Complete) -> None:
        self._close(self._done(whole.finish_reason, whole.usage or self.usage()), "finished")

    def _expired(self, limit: Limit) -> None:
        decoder = None if self._attempt is None else self._attempt.decoder
        if decoder is not None and decoder.finished:
            self.log.append(decoder.receive_eof())
            if isinstance(decoder.end, Complete):
                return self._complete(decoder.end)
        phase: Phase = "stream" if self.log.carrying else "first_token"
        message = f"upstream passed the {limit} limit of {getattr(self.chat.limits, limit, 0):g} s"
        return self.fail(RelayError("upstream_timeout", message, phase=phase))

    def superseded(self, terminal: Done | Failed) -> None:
        """Others have ended its log in the belief that this process is dead: nobody would read what came now."""
        if self.cause is None:
            self._ended(terminal, "lost")

    def _close(self, terminal: Done | Failed, cause: Cause) -> None:
        if self.log.close(terminal):
            self._ended(terminal, cause)

    def _ended(self, terminal: Done | Failed, cause: Cause) -> None:
        self.cause = cause
        self._usage = terminal.usage if isinstance(terminal, Done) else self.usage()
        self._attempt = None
        self.chat = msgspec.structs.replace(self.chat, payload={})  # an ended stream is kept, its prompt is not
        self.clocks.stop()
        self.lingering.stop()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self.on_end(self)
        if cause in STOPPED:
            self.on_spent(self.id)
        self._tell(terminal)

    def _over(self, _task: asyncio.Task[None]) -> None:
        if self.cause is None:
            self.drain()  # its task was ended from outside: the process is going down
        self._permit.release()
        self.on_over(self)

    def _done(self, finish_reason: str, usage: Usage) -> Done:
        return Done(finish_reason, usage, self._first_carried_s, self.clocks.elapsed_s)

    def _phase(self) -> Phase:
        return "stream" if self.log.carrying else "connect" if self.waiting == "connecting" else "first_token"

    def _tell(self, terminal: Done | Failed) -> None:
        error = terminal.error if isinstance(terminal, Failed) else None
        loud = error is not None and error.code == "upstream_error" and error.upstream_status in OPERATORS_STATUSES
        logger.log(
            logging.ERROR if loud else logging.INFO,
            "stream",
            stream=self.id,
            request_id=self.request_id,
            model=self.chat.model,
            cause=self.cause,
            code=error and error.code,
            upstream_status=error and error.upstream_status,
            attempts=self._attempts,
            pieces=self._carried,
            text_bytes=self._text_bytes,
            first_token_s=self._first_carried_s,
            total_s=round(self.clocks.elapsed_s, 3),
        )

    # The task: attempts, bounded, and what they bring.

    async def _run(self, upstream: Upstream, terms: Terms) -> None:
        try:
            async for attempt in stamina.retry_context(
                on=lambda error: self._repeat(error, terms),
                attempts=terms.attempts,
                timeout=None,
                wait_initial=FIRST_RETRY_SECONDS,
                wait_max=terms.max_retry_wait_s,
                wait_jitter=FIRST_RETRY_SECONDS,
            ):
                with attempt:
                    await self._try(upstream, terms)
        except RelayError as error:
            self.fail(error)
        except Exception:
            logger.exception("internal", stream=self.id, request_id=self.request_id)
            self.fail(RelayError("internal", "a fault of the relay; quote the request id", phase="relay"))

    async def _try(self, upstream: Upstream, terms: Terms) -> None:
        def deliver(entries: Sequence[Entry], decoder: Decoder) -> None:
            if entries:
                self.log.append(entries)
            if decoder.carried > self._carried:
                self._carried, self._text_bytes = decoder.carried, decoder.text_bytes
                self.clocks.carried()
            if decoder.carrying and not self.log.carrying:
                self._first_carried_s = self.clocks.elapsed_s
                self.log.mark_carrying()
            if decoder.finished:
                self.clocks.finishing(terms.usage_wait_s)

        self._attempts += 1
        self._attempt = Attempt(self.chat, self.log, self.clocks, self._turns, deliver=deliver, complete=self._complete)
        await self._attempt.run(upstream, terms.decode)

    def _repeat(self, error: BaseException, terms: Terms) -> bool | float:
        if not isinstance(error, RelayError) or self.log.carrying:
            return False
        remaining_s = self.clocks.remaining_s
        return repeat_after(error.problem, max_wait_s=terms.max_retry_wait_s, remaining_s=remaining_s)
