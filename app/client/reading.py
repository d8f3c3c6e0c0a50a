"""One answer's reading, without I/O: what to do next, what an event means, when to come back, when it is lost or over.

A shell asks `next_step` and does what it says, until `End`:

    step            the shell                                        and tells
    ClientEvent     hands it out                                     nothing
    Open            sends the request                                `opened` or `unreachable`
    Receive         reads the next bytes of the connection           `received`; None when it ended, in whatever way
    Pause           closes the connection, waits                     `paused`, also when `hung_up` cut the wait short
    End             closes the connection, raises what there is      nothing

`stop` may be called at any moment, from another thread too: it writes nothing but two flags.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from app.client import wire
from app.client.events import Answer, ClientEvent
from app.client.gathering import Gathering
from app.client.problems import ErrorObject, RelayProblem, connection_lost
from app.client.steps import End, Open, Pause, Persistence, Receive, Step

MAX_REFUSAL_BYTES: Final = 256 * 1024
CANCELLED: Final = ClientEvent(
    type="done", finish_reason="cancelled", json='{"type":"done","content":"","finish_reason":"cancelled"}'
)
"""How an answer ends that was stopped, where the relay could not be heard to say so."""


def ignore(_: Answer) -> None:
    pass


class Reading:
    """`id` is the stream's, None until the relay has answered; `seq` that of the last event that was handed out.

    `on_done` is told the answer once: when it is whole, and when it was stopped, then with what was handed out of it.
    """

    def __init__(
        self,
        request: wire.Request,
        persistence: Persistence,
        *,
        stream_id: str | None = None,
        after: int = -1,
        on_done: Callable[[Answer], None] = ignore,
    ) -> None:
        self.id = stream_id
        self.seq = self._received_seq = after
        self.hung_up = False
        self._persistence: Final = persistence
        self._on_done = on_done
        self._gathering: Final = Gathering()
        self._step: Open | Receive | Pause | End = Open(request)
        self._events: Final[deque[ClientEvent]] = deque()
        self._lines = wire.Lines()
        self._refusing: wire.Head | None = None
        self._refusal = b""
        self._failures = 0
        self._asked = False
        self._connected = False
        self._resumable = True
        self._partial = False
        self._over = False
        self._failed = False
        self._stopped = False

    @property
    def answer(self) -> Answer:
        """What was handed out of it so far."""
        return self._gathering.answer(self.id)

    def next_step(self) -> Step:
        if self._events:
            return self._hand_out(self._events.popleft())
        if self.hung_up and not isinstance(self._step, End):
            self._lost()
            return self.next_step()
        if isinstance(self._step, Open) and self.id is None:
            if self._asked:  # the reader was cancelled in the middle of asking, and is here again
                self._lost()
                return self.next_step()
            self._asked = True
        return self._step

    def _hand_out(self, event: ClientEvent) -> ClientEvent:
        self.seq = self.seq if event.seq is None else event.seq
        self._gathering.take(event)
        if event.type == "done":
            self._done()
        return event

    def _done(self) -> None:
        on_done, self._on_done = self._on_done, ignore
        on_done(self.answer)

    def opened(self, head: wire.Head) -> None:
        if head.opens_a_stream:
            self.id = head.stream_id or self.id
            self._connected = True
            self._lines = wire.Lines()
            self._step = Receive()
        elif head.status == 204 and self.id is not None and not self._connected:
            self._step = End()  # over, and nothing is left behind the cursor
        else:
            self._refusing, self._refusal = head, b""
            self._step = Receive()

    def unreachable(self, problem: RelayProblem) -> None:
        """Nobody answered the request."""
        self._refused(problem)

    def received(self, data: bytes | None) -> None:
        if self._refusing:
            self._read_refusal(self._refusing, data)
        elif data is None:
            self._lost()
        else:
            try:
                for payload in self._lines.receive_data(data):
                    self._take(payload)
            except RelayProblem as problem:
                self._fail(problem)

    def paused(self) -> None:
        assert self.id is not None, "only a stream with an id is come back to"
        self._step = Open(wire.attach(self.id, self._received_seq))

    def stop(self) -> wire.Request | None:
        """What to tell the relay so that the generation ends: the shell then says whether it was `told`.

        Before the relay has answered nobody knows the stream's id: leaving is what stops the generation then, and
        `hung_up` says that the shell is to break off whatever it waits for.
        """
        before, self._stopped = self._stopped, True
        if self._over or before:
            return None
        if self.id is None:
            self.hung_up = True
            return None
        return wire.stop(self.id)

    def told(self, accepted: bool) -> None:
        """Where the relay cannot be told, there is no end to wait for: it ends the generation after its grace."""
        if not accepted and not self._over:
            self.hung_up = True

    def left(self) -> None:
        """The reader has gone, and closed the connection."""
        if not isinstance(self._step, End):
            self._events.clear()
            self._step = End(connection_lost("The stream was closed before its end."))
        if self._stopped and not self._failed:
            self._done()

    def _read_refusal(self, head: wire.Head, data: bytes | None) -> None:
        self._refusal += data or b""
        if data is None or len(self._refusal) > MAX_REFUSAL_BYTES:
            self._refusing = None
            self._refused(wire.decode_refusal(head, self._refusal))

    def _take(self, payload: bytes) -> None:
        if self._over:
            return
        if payload == b"[DONE]":
            raise connection_lost("The stream ended without saying how.")
        event = wire.decode_event(payload)
        if event.seq is not None:
            if event.seq <= self._received_seq:
                return  # replayed
            self._received_seq, self._failures = event.seq, 0
        if event.type == "error" and self._stopped:
            raise connection_lost("What was stopped has failed.")
        self._note(event)
        self._events.append(event)

    def _note(self, event: ClientEvent) -> None:
        self._partial |= bool(event.content)
        match event.type:
            case "start":
                self.id, self._resumable = event.id or self.id, event.resumable
            case "live_only":
                self._resumable = False
            case "done":
                self._over, self._step = True, End()
            case "error":
                self._over = True
                self._end(RelayProblem(event.error or ErrorObject("internal", "The relay did not say why.")))

    def _lost(self) -> None:
        self._come_back(connection_lost("The connection to the relay was lost before the answer was whole."))

    def _refused(self, problem: RelayProblem) -> None:
        if not problem.retryable:
            self._fail(problem)
        elif self._connected:
            self._come_back(connection_lost(f"The answer is not to be had again: {problem}"), problem.retry_after_s)
        else:
            self._come_back(problem, problem.retry_after_s)

    def _come_back(self, problem: RelayProblem, at_least_seconds: float | None = None) -> None:
        """A question is never asked twice: it may be answered, and paid for, although nobody heard so."""
        if self.hung_up or self.id is None or not self._resumable or self._failures >= self._persistence.reconnects:
            self._fail(problem)
            return
        self._step = self._persistence.pause(self._failures, at_least_seconds or 0)
        self._failures += 1

    def _fail(self, problem: RelayProblem) -> None:
        """Who has stopped an answer wants to hear of no failure."""
        if self._stopped:
            self._over, self._step = True, End()
            self._events.append(CANCELLED)
        else:
            self._end(problem.with_text() if self._partial else problem)

    def _end(self, problem: RelayProblem) -> None:
        self._failed, self._step = True, End(problem)
        self._gathering.fail(problem.error)
