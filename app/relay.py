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
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import structlog

from app.admission.callers import Caller
from app.attempts import Attempts
from app.clocks import Clocks, Limit
from app.decode import Complete, Decoder
from app.entrance import Entrance
from app.errors import Phase, RelayError
from app.events import Done, Entry, Failed, Usage
from app.lingering import Lingering
from app.log.memory import MemoryLog
from app.log.reader import Reader
from app.means import Means
from app.order import Order
from app.progress import Progress
from app.stream import STOPPED, Cause, Waiting
from app.summary import Afterwards, Listener, Summary, summary_of

logger = structlog.get_logger("app.relay")


class Generation:
    """An answer being made. `start` gives it its task; it is over when that task is."""

    def __init__(self, order: Order, log: MemoryLog, entrance: Entrance, means: Means, *, id: str) -> None:
        chat = order.chat
        self.id: Final = id
        self.chat = chat
        self.owner: Final[Caller] = order.owner
        self.log: Final = log
        self.request_id: Final = order.request_id
        self.parent: Final = order.parent
        self.trace: Final = means.begin_trace(order.parent, chat.model)
        self.cause: Cause | None = None
        self.read_through = False
        self.on_spent: Callable[[str], None] = lambda _: None
        self.on_end: Callable[[Generation], None] = lambda _: None
        self.on_over: Callable[[Generation], None] = lambda _: None
        self.listeners: Sequence[Listener] = ()
        self.afterwards: Sequence[Afterwards] = ()
        self.most_readers = self.resumes = 0
        self.clocks: Final = Clocks(chat.limits, self._expired, queued=not entrance.admitted)
        self.lingering: Final = Lingering(log, order.linger_s, lambda: self.cancel("left"))
        self._attempts: Final = Attempts(
            means, log, self.clocks, entrance, deliver=self._deliver, complete=self._complete, trace=self.trace
        )
        self._entrance = entrance
        self._usage_wait_s: Final = means.terms.usage_wait_s
        self._progress: Final = Progress(chat.prompt_bytes, told=chat.webhook_text)
        self._task: asyncio.Task[None] | None = None
        self._ended_at = 0.0
        self._told: Summary | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"generation {self.id}")
        self._task.add_done_callback(self._over)

    @property
    def waiting(self) -> Waiting:
        """What a reader that hears nothing is waiting for."""
        return "streaming" if self.log.carrying else self._attempts.waiting

    @property
    def upstream(self) -> str | None:
        """The last that was asked."""
        return self._attempts.upstream

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
        """The usage known by now: upstream's, else an estimate."""
        reported = None if self._decoder is None else self._decoder.answer.usage
        return reported or self._progress.usage()

    # Readers: who reads, and what it means when nobody does.

    def attach(self, after: int) -> Reader:
        self.lingering.attached()
        reader = self.log.open_reader(after)
        self.most_readers = max(self.most_readers, len(self.log.readers))
        self.resumes += after >= 0
        return reader

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
            error.problem, partial=self._progress.pieces > 0, request_id=self.request_id, phase=phase
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
        self._attempts.succeeded()
        self._close(self._done(whole.finish_reason, whole.usage or self.usage()), "finished")

    def _expired(self, limit: Limit) -> None:
        decoder = self._decoder
        if decoder is not None and decoder.answer.finished:
            self.log.append(decoder.receive_eof())
            if isinstance(decoder.answer.end, Complete):
                return self._complete(decoder.answer.end)
        error = self.clocks.overdue(limit, self.waiting)
        self._attempts.timed_out(error.problem, limit)
        return self.fail(error)

    def superseded(self, terminal: Done | Failed) -> None:
        """Others have ended its log in the belief that this process is dead: nobody would read what came now."""
        if self.cause is None:
            self._ended(terminal, "lost")

    def _close(self, terminal: Done | Failed, cause: Cause) -> None:
        if self.log.close(terminal):
            self._ended(terminal, cause)

    def _ended(self, terminal: Done | Failed, cause: Cause) -> None:
        self.cause, self._ended_at = cause, time.monotonic()
        self._progress.reported = terminal.usage if isinstance(terminal, Done) else self.usage()
        self._told = summary = summary_of(self, self._attempts, self._progress, terminal)
        self._attempts.current = None
        self.chat = msgspec.structs.replace(self.chat, payload={})  # an ended stream is kept, its prompt is not
        self.clocks.close()
        self.lingering.stop()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self.on_end(self)
        if cause in STOPPED:
            self.on_spent(self.id)
        for listener in self.listeners:
            listener(summary)

    def _over(self, _task: asyncio.Task[None]) -> None:
        if self.cause is None:
            self.drain()  # its task was ended from outside: the process is going down
        self._entrance.close()
        self._let_go()
        self.on_over(self)
        summary, self._told = self._told, None
        assert summary is not None  # it has ended
        for tell in self.afterwards:
            tell(summary, time.monotonic() - self._ended_at)

    def _let_go(self) -> None:
        """Of those that know us: what is in a circle waits for the collector."""
        self._task = None
        self._attempts.let_go()

    def _done(self, finish_reason: str, usage: Usage) -> Done:
        return Done(finish_reason, usage, self._progress.first_carried_s, self.clocks.elapsed_s)

    def _phase(self) -> Phase:
        if self.log.carrying:
            return "stream"
        match self.waiting:
            case "queued":
                return "admission"
            case "connecting":
                return "connect"
            case _:
                return "first_token"

    # The task: what its attempts bring.

    @property
    def _decoder(self) -> Decoder | None:
        return None if self._attempts.current is None else self._attempts.current.decoder

    async def _run(self) -> None:
        try:
            await self._attempts.run(self.chat)
        except RelayError as error:
            self.fail(error.with_traceback(None))  # it would hold what is held by it
        except Exception:
            logger.exception("internal", stream=self.id, request_id=self.request_id)
            self.fail(RelayError("internal", "a fault of the relay; quote the request id", phase="relay"))

    def _deliver(self, entries: Sequence[Entry], decoder: Decoder) -> None:
        if entries:
            self.log.append(entries)
        if self._progress.made(entries, decoder):
            self.clocks.carried()
        if not self.log.carrying and decoder.answer.carrying:
            self._progress.first_carried_s = self.clocks.elapsed_s
            self.log.mark_carrying()
            self._attempts.carried()
        if decoder.answer.finished:
            self.clocks.finishing(self._usage_wait_s)
