"""What a shared log keeps to that one in memory need not: see app/log/shared.py. On a real Redis, entry by entry."""

from collections.abc import Iterator
from typing import cast

import pytest
from redis import Redis

from app.errors import Problem
from app.events import Delta, Done, Event, Failed, Start, Usage
from app.log.keys import Keys
from app.log.leases import Leases
from app.log.redis import Server
from app.log.shared import SharedLog
from tests.shared_store import KEEP_MS, Postman, SharedStore, redis_in, taken

START = Start("s_1", "m", True)
DONE = Done("stop", Usage(1, 2, 3, "reported"), 0.1, 0.2)
LOST = Failed(Problem(code="relay_lost", message="gone", type="relay_error", retryable=True, status=500))
PIECE_BYTES = 100


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with redis_in(tmp_path_factory.mktemp("redis")) as client:
        yield client


@pytest.fixture
def store(redis: Redis) -> SharedStore:
    return SharedStore(redis)


@pytest.fixture
def postman(store: SharedStore) -> Postman:
    return store.postman


class Slow:
    """From here on the postman brings nothing by itself, and Redis is not known to be away."""

    def __init__(self, postman: Postman) -> None:
        postman.mark = lambda log: None  # type: ignore[method-assign]


def shared(store: SharedStore, *, max_bytes: int = 1 << 20, max_lag_bytes: int = 1 << 20) -> SharedLog:
    log = store.log(max_bytes=max_bytes, max_lag_bytes=max_lag_bytes)
    assert isinstance(log, SharedLog)
    return log


def pieces(first: int, count: int = 1) -> list[Delta]:
    return [Delta(f"{seq:0{PIECE_BYTES}}") for seq in range(first, first + count)]


async def test_nothing_can_be_read_before_redis_has_it(store: SharedStore, postman: Postman) -> None:
    log = shared(store)
    reader = log.open_reader()
    assert taken(reader) == [START]
    Slow(postman)
    log.append(pieces(1))
    assert log.close(DONE)
    assert (taken(reader), log.closed, reader.behind) == ([], None, False)
    assert not log.close(LOST)
    postman.deliver(log, log.parcel())
    assert (taken(reader), log.closed) == ([*pieces(1), DONE], DONE)


async def test_an_append_whose_acknowledgement_was_lost_is_known(store: SharedStore, postman: Postman) -> None:
    log = shared(store)
    Slow(postman)
    log.append(pieces(1, 2))
    parcel = log.parcel()
    postman.bring(log.id, parcel)
    log.append(pieces(3))
    assert postman.deliver(log, log.parcel()) == []
    assert postman.held(log.id) == [START, *pieces(1, 3)]


async def test_an_end_whose_acknowledgement_was_lost_is_still_our_own(store: SharedStore, postman: Postman) -> None:
    log = shared(store)
    Slow(postman)
    log.close(DONE)
    postman.bring(log.id, log.parcel())
    assert postman.deliver(log, log.parcel()) == []
    assert (log.closed, postman.held(log.id)) == (DONE, [START, DONE])


@pytest.mark.parametrize("left", [0, 1, 2])
async def test_what_redis_has_lost_is_brought_again(store: SharedStore, postman: Postman, left: int) -> None:
    """It was restarted, with fewer appends than it had acknowledged, or with none."""
    log = shared(store)
    for seq in (1, 2, 3):
        log.append(pieces(seq))
    names = (postman.keys.meta(log.id), postman.keys.events(log.id))
    if left:
        postman.redis.xdel(names[1], *(f"{behind}-0" for behind, _ in postman.batches(log.id)[left:]))
        postman.redis.hset(names[0], "next", left)
        postman.redis.eval("return redis.call('XSETID', KEYS[1], ARGV[1])", 1, names[1], f"{left}-0")
    else:
        postman.redis.delete(*names)
    reader = log.open_reader(3)
    log.append(pieces(4))
    assert postman.held(log.id) == [START, *pieces(1, 4)]
    assert taken(reader) == pieces(4)


async def test_after_a_long_silence_what_redis_does_not_know_stays_unknown(
    store: SharedStore, postman: Postman
) -> None:
    """It may have been ended by others and forgotten: readers here go on alone."""
    log = shared(store)
    reader = log.open_reader()
    postman.redis.delete(postman.keys.meta(log.id), postman.keys.events(log.id))
    log.too_late = True
    log.append(pieces(1))
    log.close(DONE)
    assert (taken(reader), log.live_from) == ([START, *pieces(1), DONE], 1)
    assert (postman.held(log.id), postman.state(log.id)) == ([], "")


async def test_a_writer_that_was_taken_for_dead_has_the_end_that_others_gave(
    store: SharedStore, postman: Postman
) -> None:
    log = shared(store)
    told: list[Event] = []
    log.on_superseded = told.append
    reader = log.open_reader()
    log.append(pieces(1))
    assert postman.end(log.id, LOST)
    assert not postman.end(log.id, LOST)
    log.append(pieces(2, 3))
    log.append(pieces(5))
    assert not log.close(DONE)
    assert (taken(reader), log.closed, told) == ([START, *pieces(1), LOST], LOST, [LOST])
    assert postman.held(log.id) == [START, *pieces(1), LOST]


async def test_a_stream_that_has_ended_cannot_be_ended_by_others(store: SharedStore, postman: Postman) -> None:
    log = shared(store)
    log.close(DONE)
    assert not postman.end(log.id, LOST)
    assert postman.held(log.id) == [START, DONE]


async def test_while_redis_is_away_readers_go_on_and_others_get_it_later(store: SharedStore, postman: Postman) -> None:
    log = shared(store)
    reader = log.open_reader()
    log.append(pieces(1))
    postman.away = True
    log.append(pieces(2))
    assert (taken(reader), log.live_from) == ([START, *pieces(1, 2)], 2)
    log.close(DONE)
    assert (taken(reader), log.closed) == ([DONE], DONE)
    assert postman.held(log.id) == [START, *pieces(1)]
    postman.away = False
    postman.mark(log)
    assert (postman.held(log.id), postman.state(log.id)) == ([START, *pieces(1, 2), DONE], "gone")
    reader.close()
    assert store.used_bytes == 0


async def test_an_append_that_is_carried_out_late_changes_nothing(store: SharedStore, postman: Postman) -> None:
    """A paused Redis had it in its socket; meanwhile it was given up, and brought again."""
    log = shared(store)
    deliver = postman.mark
    Slow(postman)
    log.append(pieces(1))
    late = log.parcel()
    postman.away = True
    log.append(())
    postman.away, postman.mark = False, deliver  # type: ignore[method-assign]
    postman.mark(log)
    assert (late.state, postman.state(log.id)) == ("open", "alone")
    postman.bring(log.id, late)
    assert postman.state(log.id) == "alone"
    log.close(DONE)
    postman.bring(log.id, late)
    assert (postman.state(log.id), postman.held(log.id)) == ("gone", [START, *pieces(1), DONE])


async def test_what_was_dropped_while_redis_was_away_is_told_as_missing(store: SharedStore, postman: Postman) -> None:
    log = shared(store, max_bytes=1000)
    reader = log.open_reader()
    postman.away = True
    for seq in range(1, 10):
        log.append(pieces(seq))
        taken(reader)
    assert log.kept_bytes < 1000
    postman.away = False
    log.append(pieces(10))
    assert (taken(reader), postman.state(log.id)) == (pieces(10), "cut")
    log.close(DONE)
    assert (taken(reader), log.closed) == ([DONE], DONE)
    assert postman.held(log.id) == [START]


async def test_upstream_waits_for_redis_as_for_a_slow_reader(store: SharedStore, postman: Postman) -> None:
    log = shared(store, max_lag_bytes=1000)
    Slow(postman)
    log.append(pieces(1, 10))
    assert log.crowded
    postman.deliver(log, log.parcel())
    assert not log.crowded


async def test_beyond_its_bound_a_stream_is_short_in_redis_too(store: SharedStore, postman: Postman) -> None:
    log = shared(store, max_bytes=1000)
    reader = log.open_reader()
    for seq in range(1, 100):
        log.append(pieces(seq))
        taken(reader)
    assert postman.state(log.id) == "live"
    assert len(postman.batches(log.id)) == 32
    log.close(DONE)
    assert (taken(reader), postman.state(log.id)) == ([DONE], "gone")


async def test_everything_in_redis_ends_by_itself(store: SharedStore, postman: Postman) -> None:
    log = shared(store)
    names = (postman.keys.meta(log.id), postman.keys.events(log.id))
    assert all(0 < postman.redis.pttl(name) <= KEEP_MS for name in names)
    log.close(DONE)
    assert all(0 < postman.redis.pttl(name) <= KEEP_MS for name in names)


# Leases


class Looking:
    """One process that looks at another's lease, at times that we choose; a lease is 5 s."""

    def __init__(self) -> None:
        server = cast(Server, None)  # nothing is asked of it: `run` is not run
        self.leases = Leases(
            server, Keys("t"), "p_1", lease_s=5, kept=lambda _: None, failed=lambda _error, _for_s: None
        )

    def look(self, at_s: float, *, present: bool = False, keeps: bool = True) -> bool:
        if keeps:
            self.leases._keep(at_s, lost=False)
        else:
            self.leases.out_of_touch()
        return self.leases.seen("p_2", present, at_s)


def test_a_process_is_dead_after_a_lease_in_which_it_was_missing_all_the_time() -> None:
    looking = Looking()
    looking.look(0)
    assert [looking.look(at_s) for at_s in (1, 2, 3, 4, 4.9, 5, 6)] == [False] * 5 + [True] * 2


def test_a_process_that_was_seen_once_is_not_dead() -> None:
    looking = Looking()
    looking.look(0)
    assert not any(looking.look(at_s, present=at_s == 4) for at_s in range(1, 10))


def test_who_could_not_write_all_the_time_declares_nobody_dead() -> None:
    looking = Looking()
    looking.look(0)
    assert not any(looking.look(at_s, keeps=at_s % 4 != 0) for at_s in range(1, 60))


def test_who_was_paused_itself_begins_anew() -> None:
    looking = Looking()
    for at_s in range(5):
        assert not looking.look(at_s)
    assert [looking.look(60 + at_s) for at_s in range(7)] == [False] * 5 + [True] * 2


def test_a_server_that_had_lost_our_own_lease_may_have_lost_others() -> None:
    looking = Looking()
    for at_s in range(5):
        assert not looking.look(at_s)
    looking.leases._keep(4.5, lost=True)
    assert not looking.look(6)
