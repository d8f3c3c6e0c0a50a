"""One Idempotency-Key, several processes: one generation."""

import asyncio
from pathlib import Path

import msgspec

from tests.fleet import TTL_SECONDS, Fleet, Reading, fleet
from tests.relay import SSE, chat, connect, fetch, subject, text_of
from tests.relay import ask as ask_relay
from tests.upstream import answer, chunk, finish, hang, head, status, wait

CROWD = 50


def keyed(letter: str = "a", key: str = "k1") -> dict[str, str]:
    return SSE | subject(letter) | {"idempotency-key": key}


async def test_the_same_key_sent_to_both_at_once_is_one_generation(tmp_path: Path) -> None:
    more = asyncio.Event()
    async with fleet(tmp_path) as relays:
        relays.upstream.script((head(), chunk("a"), wait(more), chunk("b"), finish()))
        asked = [asyncio.create_task(ask_relay(port, chat(), headers=keyed())) for port in ports(relays) * 3]
        await relays.upstream.wait_for(lambda u: u.active == 1, 10)
        more.set()
        answers = await asyncio.gather(*asked)
        assert len({response.headers["x-stream-id"] for response, _ in answers}) == 1
        await relays.redis.forgets(4 * TTL_SECONDS)
    assert {text_of(events) for _, events in answers} == {"ab"}
    assert len({msgspec.json.encode([e for e in events if e["type"] != "ping"]) for _, events in answers}) == 1
    assert len(relays.upstream.requests) == 1


async def test_a_crowd_under_one_key_fails_as_one_generation_and_the_next_begins_anew(tmp_path: Path) -> None:
    """Upstream's 503 is our 502, on whichever process: the table of errors knows no other."""
    refuse = asyncio.Event()
    async with fleet(tmp_path, RELAY_ATTEMPTS="1") as relays:
        relays.upstream.script((wait(refuse), *status(503)), answer("Hello"))
        crowd = [
            asyncio.create_task(fetch(port, "POST", "/chat/stream", chat(), keyed()))
            for port in CROWD // 2 * ports(relays)
        ]
        await relays.upstream.wait_for(lambda u: u.active == 1, 10)
        await asyncio.wait(crowd, timeout=1)
        refuse.set()
        refused = await asyncio.gather(*crowd)
        assert [response.status for response, _ in refused] == [502] * CROWD
        assert len({response.headers["x-stream-id"] for response, _ in refused}) == 1
        assert len(relays.upstream.requests) == 1
        again = await asyncio.gather(*(ask_relay(port, chat(), headers=keyed()) for port in ports(relays)))
        assert {text_of(events) for _, events in again} == {"Hello"}
        assert len(relays.upstream.requests) == 2


async def test_another_body_is_a_conflict_and_another_caller_has_a_stream_of_his_own(tmp_path: Path) -> None:
    async with fleet(tmp_path) as relays:
        relays.upstream.script((head(), chunk("a"), hang()))
        reading = Reading()
        async with connect(relays.one.port) as connection:
            await reading.read(await connection.request("POST", "/chat/stream", chat(), keyed()), 2)
            conflict, body = await fetch(relays.two.port, "POST", "/chat/stream", chat("another"), keyed())
            assert (conflict.status, msgspec.json.decode(body[6:].split(b"\n")[0])["error"]["code"]) == (
                409,
                "idempotency_conflict",
            )
            async with connect(relays.two.port) as other:
                theirs = Reading()
                await theirs.read(await other.request("POST", "/chat/stream", chat(), keyed("b")), 2)
        assert theirs.id != reading.id
        assert len(relays.upstream.requests) == 2


async def test_a_cancel_on_another_process_frees_the_key(tmp_path: Path) -> None:
    async with fleet(tmp_path) as relays:
        relays.upstream.script((head(), chunk("a"), hang()), answer("Hello"))
        reading = Reading()
        async with connect(relays.one.port) as connection:
            response = await connection.request("POST", "/chat/stream", chat(), keyed())
            await reading.read(response, 2)
            await fetch(relays.two.port, "DELETE", f"/chat/stream/{reading.id}", headers=subject("a"))
            await reading.read(response)
        assert reading.events[-2]["finish_reason"] == "cancelled"
        for port in ports(relays):
            _, events = await ask_relay(port, chat(), headers=keyed())
            assert text_of(events) == "Hello"
        assert len(relays.upstream.requests) == 2


def ports(relays: Fleet) -> list[int]:
    return [relays.one.port, relays.two.port]
