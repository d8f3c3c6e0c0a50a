"""What every log keeps, whoever stores it: each test runs through each store of `STORES`.

1. A log ends in exactly one terminal event, and nothing follows it: the first close wins.
2. A reader sees a suffix without gaps, in order, whenever it came and whoever reads beside it.
3. What is kept is counted, bounded, and given back.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from app.errors import Problem
from app.events import Delta, Done, Event, Failed, Passed, Start, ToolCall, Usage
from app.log.budget import ENTRY_OVERHEAD_BYTES, Budget
from app.log.memory import MemoryLog
from app.log.reader import TAKE_ENTRIES, Reader
from app.wire.native import Shape
from tests.shared_store import SharedStore, redis_in, taken

DEADLINE_SECONDS = 5
ENTRY_BYTES: Final = ENTRY_OVERHEAD_BYTES + 10
START = Start("s_1", "m", True)
DONE = Done("stop", Usage(1, 2, 3, "reported"), 0.1, 0.2)
FAILED = Failed(Problem(code="internal", message="no", type="relay_error", retryable=False, status=500))


class Store(Protocol):
    """What a log's implementation brings into this suite. Sizes are in bytes."""

    def log(self, *, resumable: bool = True, max_bytes: int = 1 << 20, max_lag_bytes: int = 1 << 20) -> MemoryLog: ...
    @property
    def used_bytes(self) -> int: ...


class MemoryStore:
    """Logs in memory, on one budget."""

    def __init__(self, total_bytes: int = 1 << 30, reclaim: Callable[[Budget], None] = lambda _: None) -> None:
        self.budget = Budget(total_bytes, reclaim)

    def log(self, *, resumable: bool = True, max_bytes: int = 1 << 20, max_lag_bytes: int = 1 << 20) -> MemoryLog:
        return MemoryLog(Start("s_1", "m", resumable), self.budget, max_bytes=max_bytes, max_lag_bytes=max_lag_bytes)

    @property
    def used_bytes(self) -> int:
        return self.budget.used_bytes


STORES: Final = ("memory", "redis")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with redis_in(tmp_path_factory.mktemp("redis")) as client:
        yield client


def stored(request: pytest.FixtureRequest) -> Store:
    return SharedStore(request.getfixturevalue("redis")) if request.param == "redis" else MemoryStore()


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Store:
    return stored(request)


def entries(first: int, count: int = 1) -> list[Delta]:
    """Entries that tell their seq, of `ENTRY_BYTES` each."""
    return [Delta(f"{seq:010}") for seq in range(first, first + count)]


async def read_to_end(reader: Reader) -> list[Event]:
    """As a response reads: what is there, else it waits. To the end of a closed log."""
    events: list[Event] = []
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            events += taken(reader)
            if reader.log.closed is not None and not reader.behind:
                return events
            await reader.wait()


# Append, read, close


async def test_a_log_begins_with_its_start(store: Store) -> None:
    log = store.log()
    assert taken(log.open_reader()) == [START]
    assert (log.next_seq, log.closed, log.carrying) == (1, None, False)


async def test_readers_from_every_cursor_see_the_same(store: Store) -> None:
    log = store.log()
    log.append(entries(1, 3))
    early = {after: log.open_reader(after) for after in range(-1, 4)}
    log.append(entries(4, 2))
    log.close(DONE)
    late = {after: log.open_reader(after) for after in range(-1, 7)}
    whole = [START, *entries(1, 5), DONE]
    assert {after: taken(reader) for after, reader in early.items()} == {at: whole[at + 1 :] for at in early}
    assert {after: taken(reader) for after, reader in late.items()} == {at: whole[at + 1 :] for at in late}
    assert log.everything() == whole


async def test_reading_takes_nothing_from_others(store: Store) -> None:
    log = store.log()
    one, other = log.open_reader(), log.open_reader()
    log.append(entries(1))
    assert taken(one) == [START, *entries(1)]
    assert one.peek() == []
    one.close()
    assert taken(other) == [START, *entries(1)]


async def test_the_first_close_wins(store: Store) -> None:
    log = store.log()
    assert [log.close(DONE), log.close(FAILED), log.close(DONE)] == [True, False, False]
    assert log.closed == DONE
    assert taken(log.open_reader()) == [START, DONE]


async def test_what_comes_after_the_close_is_dropped(store: Store) -> None:
    log = store.log()
    reader = log.open_reader()
    log.close(DONE)
    used = store.used_bytes
    log.append(entries(1, 5))
    assert taken(reader) == [START, DONE]
    assert (log.next_seq, store.used_bytes) == (2, used)


async def test_a_reader_takes_a_bounded_number_at_once(store: Store) -> None:
    log = store.log()
    reader = log.open_reader()
    log.append(entries(1, 2 * TAKE_ENTRIES))
    assert len(reader.peek()) == TAKE_ENTRIES
    log.close(DONE)
    assert 0 < len(reader.peek()) <= TAKE_ENTRIES
    assert len(taken(reader)) == 2 * TAKE_ENTRIES + 2


async def test_what_an_entry_holds_is_counted_in_utf8(store: Store) -> None:
    log = store.log()
    empty = log.kept_bytes
    passed = Passed(b'{"x":1}', Delta("\u6f22"))
    log.append([Delta("ab"), Delta("\u6f22\U0001f389"), ToolCall(0, "call_1", "f", '{"\u00e9"'), passed])
    assert log.kept_bytes - empty == 4 * ENTRY_OVERHEAD_BYTES + 2 + 7 + 5 + (7 + 3)


@pytest.mark.parametrize("count", [0, 1, 254, 255, 700])
async def test_packing_changes_no_byte_of_any_suffix(store: Store, count: int) -> None:
    log, shape = store.log(), Shape("s_1", ids=True)
    log.append([*entries(1, count), ToolCall(0, "call_1", None, "\u6f22"), ToolCall(0, None, None, "")])
    before = {after: taken(log.open_reader(after)) for after in range(-1, count + 3, 7)}
    log.close(FAILED)
    for after, events in before.items():
        again = taken(log.open_reader(after))
        assert again == [*events, FAILED]
        assert shape.encode(after + 1, again[:9], None) == shape.encode(after + 1, [*events, FAILED][:9], None)


# Waiting


@pytest.mark.parametrize("change", ["append", "carrying", "close", "wake"])
async def test_every_change_wakes_every_reader(store: Store, change: str) -> None:
    log = store.log()
    readers = [log.open_reader(0) for _ in range(3)]
    waiting = [asyncio.ensure_future(reader.wait()) for reader in readers]
    await asyncio.sleep(0)
    match change:
        case "append":
            log.append(entries(1))
        case "carrying":
            log.mark_carrying()
        case "close":
            log.close(DONE)
        case _:
            for reader in readers:
                reader.wake()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await asyncio.gather(*waiting)


async def test_a_cancelled_wait_loses_nothing_and_disturbs_nobody(store: Store) -> None:
    log = store.log()
    one, other = log.open_reader(), log.open_reader()
    reading = asyncio.create_task(read_to_end(other))
    for number in range(1, 6):
        waiting = asyncio.ensure_future(one.wait())
        await asyncio.sleep(0)
        if number % 2:
            log.append(entries(number))
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        if not number % 2:
            log.append(entries(number))
    log.close(DONE)
    whole = [START, *entries(1, 5), DONE]
    assert (await reading, await read_to_end(one)) == (whole, whole)


# Bounds


async def test_over_its_bound_a_log_is_live_only_and_forgets_what_all_have_taken(store: Store) -> None:
    log = store.log(max_bytes=5 * ENTRY_BYTES)
    fast, slow = log.open_reader(), log.open_reader()
    log.append(entries(1, 4))
    assert (log.live_from, taken(fast)[-1:]) == (None, entries(4))
    slow.advance(2)
    log.append(entries(5, 2))
    assert log.live_from == log.next_seq == 7
    assert log.everything() == entries(2, 5)
    assert store.used_bytes == log.kept_bytes == 5 * ENTRY_BYTES
    assert taken(slow) == entries(2, 5)
    assert taken(fast) == entries(5, 2)
    assert (log.everything(), store.used_bytes) == ([], 0)
    log.append(entries(7))
    log.close(DONE)
    assert taken(slow) == taken(fast) == [*entries(7), DONE]
    assert store.used_bytes == 0


async def test_a_live_only_log_without_readers_keeps_nothing(store: Store) -> None:
    log = store.log(max_bytes=ENTRY_BYTES)
    reader = log.open_reader()
    log.append(entries(1, 3))
    reader.close()
    log.append(entries(4, 3))
    log.close(DONE)
    assert (log.everything(), store.used_bytes, log.next_seq) == ([], 0, 8)


async def test_a_log_that_cannot_be_resumed_keeps_what_is_not_taken(store: Store) -> None:
    log = store.log(resumable=False)
    reader = log.open_reader()
    log.append(entries(1, 3))
    reader.advance(2)
    assert log.everything() == entries(2, 2)
    assert taken(reader) == entries(2, 2)
    assert store.used_bytes == 0
    log.append(entries(4))
    log.close(DONE)
    assert taken(reader) == [*entries(4), DONE]
    assert (log.live_from, store.used_bytes) == (None, 0)


async def test_a_log_that_cannot_be_resumed_leaves_nothing_when_its_reader_leaves(store: Store) -> None:
    for _ in range(3):
        log = store.log(resumable=False)
        reader = log.open_reader()
        log.append(entries(1, 3))
        reader.close()
        log.append(entries(4))
        log.close(DONE)
    assert store.used_bytes == 0


async def test_a_log_is_crowded_only_where_it_forgets(store: Store) -> None:
    kept = store.log(max_lag_bytes=ENTRY_BYTES)
    kept.open_reader()
    kept.append(entries(1, 9))
    assert not kept.crowded
    live = store.log(resumable=False, max_lag_bytes=3 * ENTRY_BYTES)
    slow, fast = live.open_reader(0), live.open_reader(0)
    live.append(entries(1, 3))
    crowded = [live.crowded]
    live.append(entries(4))
    fast.advance(4)
    crowded.append(live.crowded)
    slow.advance(1)
    assert [*crowded, live.crowded] == [False, True, False]


@pytest.mark.parametrize("change", ["advance", "leave", "close"])
async def test_room_comes_when_the_slowest_reader_moves_or_goes_or_the_log_ends(store: Store, change: str) -> None:
    log = store.log(resumable=False, max_lag_bytes=2 * ENTRY_BYTES)
    reader = log.open_reader(0)
    log.append(entries(1, 5))
    room = asyncio.create_task(log.room())
    await asyncio.sleep(0)
    reader.advance(1)
    await asyncio.sleep(0)
    assert not room.done()
    match change:
        case "advance":
            reader.advance(2)
        case "leave":
            reader.close()
        case _:
            log.close(DONE)
    async with asyncio.timeout(DEADLINE_SECONDS):
        await room


async def test_room_is_there_at_once_without_a_crowd(store: Store) -> None:
    log = store.log(max_lag_bytes=ENTRY_BYTES)
    log.append(entries(1, 9))
    async with asyncio.timeout(DEADLINE_SECONDS):
        await log.room()


async def test_a_released_log_gives_its_bytes_back(store: Store) -> None:
    logs = [store.log() for _ in range(3)]
    for log in logs:
        log.append(entries(1, 300))
        log.close(DONE)
    assert store.used_bytes == sum(log.kept_bytes for log in logs) > 0
    for log in logs:
        log.release()
    assert store.used_bytes == 0


async def test_a_finished_log_is_charged_what_it_takes() -> None:
    store = MemoryStore()
    log = store.log()
    log.append(entries(1, 1000))
    running = store.used_bytes
    log.close(DONE)
    assert 1000 * 10 < store.used_bytes < running / 5


async def test_finished_logs_are_given_up_before_any_is_cut() -> None:
    finished: list[MemoryLog] = []
    store = MemoryStore(20 * ENTRY_BYTES, lambda _: finished.pop(0).release() if finished else None)
    first, second = store.log(), store.log()
    first.append([Delta("x" * 10 * ENTRY_BYTES)])
    first.close(DONE)
    finished.append(first)
    second.append(entries(1, 12))
    assert (finished, second.live_from) == ([], None)
    second.append(entries(13, 12))
    assert second.live_from == second.next_seq


# Any order of things

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 5)),
        st.tuples(st.just("read"), st.integers(0, 3)),
        st.tuples(st.just("take one"), st.integers(0, 3)),
        st.tuples(st.just("attach"), st.integers(-1, 30)),
        st.tuples(st.just("detach"), st.integers(0, 3)),
        st.tuples(st.just("close"), st.integers(0, 1)),
    ),
    max_size=60,
)


class Told:
    """A reader, what it was told, and where it began."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.after = reader.cursor
        self.events: list[Event] = []

    def read(self, most: int | None = None) -> int:
        some = self.reader.peek()[:most]
        self.events += some
        self.reader.advance(len(some))
        return len(some)


class Model:
    """A log beside a list: the list says what readers of the log must be told."""

    def __init__(self, store: Store, *, resumable: bool, max_bytes: int) -> None:
        self.log = store.log(resumable=resumable, max_bytes=max_bytes)
        self.wanted: list[Event] = [Start("s_1", "m", resumable)]
        self.attached = [Told(self.log.open_reader())]
        self.gone: list[Told] = []

    def step(self, what: str, number: int) -> None:
        some = self.attached[number % len(self.attached)] if self.attached and number >= 0 else None
        match what:
            case "append":
                pieces = entries(len(self.wanted), number)
                self.log.append(pieces)
                self.wanted += [] if isinstance(self.wanted[-1], Done | Failed) else pieces
            case "close":
                won = self.log.close((DONE, FAILED)[number])
                assert won != isinstance(self.wanted[-1], Done | Failed)
                self.wanted += [(DONE, FAILED)[number]] if won else []
            case "attach" if self.log.resumable and self.log.live_from is None:
                self.attached.append(Told(self.log.open_reader(min(number, self.log.next_seq - 1))))
            case "read" if some:
                some.read()
            case "take one" if some:
                some.read(1)
            case "detach" if some:
                self.detach(some)
            case _:
                pass

    def detach(self, told: Told) -> None:
        self.attached.remove(told)
        self.gone.append(told)
        told.reader.close()


@pytest.fixture(params=STORES)
def make(request: pytest.FixtureRequest) -> Callable[[], Store]:
    return lambda: stored(request)


@given(steps=STEPS, resumable=st.booleans(), max_bytes=st.sampled_from([4 * ENTRY_BYTES, 1 << 20]))
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_in_any_order_readers_see_suffixes_without_gaps_and_one_end(
    make: Callable[[], Store], steps: list[tuple[str, int]], resumable: bool, max_bytes: int
) -> None:
    store = make()
    model = Model(store, resumable=resumable, max_bytes=max_bytes)
    for what, number in steps:
        model.step(what, number)
        assert 0 <= store.used_bytes == model.log.kept_bytes
    model.step("close", 0)
    for told in [*model.attached]:
        while told.reader.behind:
            assert told.read()
        assert told.events == model.wanted[told.after + 1 :]
        model.detach(told)
    for told in model.gone:
        assert told.events == model.wanted[told.after + 1 :][: len(told.events)]
    if resumable and model.log.live_from is None:
        assert model.log.everything() == model.wanted
        model.log.release()
    assert store.used_bytes == 0
