"""The webhook's calls: each stream that has ended is told once, without anything waiting for it.

- Calling is synchronous: it makes a task, or drops the call where as many wait as may. A receiver that is down costs
  no stream anything, and never more memory than `max_queued` calls and MAX_HELD_BYTES.
- A call keeps its id in all attempts, so that a receiver can tell a repetition.
- What a receiver answers is read only to be able to use the connection again.
"""

import asyncio
import contextlib
import io
import random
import time
from collections import Counter
from datetime import UTC, datetime
from functools import partial
from typing import Final, Literal

import aiohttp
import msgspec
import structlog

from app import retry_after
from app.overview import WebhookNow
from app.settings.kinds import MiB
from app.settings.tables import WebhookTable
from app.summary import Summary
from app.webhook import message
from app.webhook.retrying import Draw, Verdict, verdict, wait_s
from app.webhook.signing import Signer

CALLS_AT_ONCE: Final = 4
MAX_HELD_BYTES: Final = 64 * MiB
"""The bodies of all calls that have not ended: where texts are told, their number alone is no bound."""

FLUSH_SECONDS: Final = 3.0
"""What calls that have not ended are given when the process ends."""

QUIET_SECONDS: Final = 60.0
"""A receiver that is down is told of once in so long, not once for each stream."""

KEEP_ALIVE_SECONDS: Final = 3.0
"""Less than servers keep theirs (uvicorn: 5), so that no call is sent on a connection that is being closed."""

MAX_ANSWER_BYTES: Final = 16 * 1024
ANSWER_SECONDS: Final = 1.0

Outcome = Literal["delivered", "refused", "given_up", "dropped", "lost"]

logger = structlog.get_logger("app.webhook")


class Call(msgspec.Struct, frozen=True):
    """`id` is the stream's: whoever tells of it twice, tells of the same."""

    id: str
    body: bytes


class Answer(msgspec.Struct, frozen=True):
    """What became of an attempt. `why` is a status or the name of what went wrong, never the words of either."""

    verdict: Verdict
    why: str
    retry_after_s: float | None = None


class Webhook:
    """A listener of generations. It can be made before a loop runs; raises SettingsError for a secret that is none."""

    def __init__(
        self,
        table: WebhookTable,
        *,
        user_agent: str,
        proxy: str | None = None,
        draw: Draw = lambda most: random.uniform(0, most),
    ) -> None:
        self._table = table
        self._signer = Signer(table.secret().get_secret_value())
        self._draw = draw
        self._user_agent = user_agent
        self._proxy = proxy
        self._session: aiohttp.ClientSession | None = None
        self._places = asyncio.Semaphore(CALLS_AT_ONCE)
        self._closing = asyncio.Event()
        self._closed = False
        self._waiting: set[asyncio.Task[tuple[Outcome, str]]] = set()
        self._held_bytes = 0
        self._ended: Counter[Outcome] = Counter()
        self._untold: Counter[Outcome] = Counter()
        self._quiet_until: dict[Outcome, float] = {}

    def __call__(self, summary: Summary) -> None:
        if self._closed:
            return self._end("lost", "the process ends")
        if len(self._waiting) >= self._table.max_queued:
            return self._end("dropped", "too many calls wait")
        body = message.body(summary, datetime.now(UTC))
        if self._held_bytes + len(body) > MAX_HELD_BYTES:
            return self._end("dropped", "too many bytes wait")
        call = Call(f"msg_{summary.stream}", body)
        self._held_bytes += len(body)
        task = asyncio.create_task(self._outcome(call), name=f"webhook {call.id}")
        self._waiting.add(task)
        task.add_done_callback(partial(self._over, call))
        return None

    def now(self) -> WebhookNow:
        return WebhookNow(
            waiting=len(self._waiting),
            delivered=self._ended["delivered"],
            refused=self._ended["refused"],
            given_up=self._ended["given_up"],
            dropped=self._ended["dropped"],
            lost=self._ended["lost"],
        )

    async def aclose(self) -> None:
        """Gives every call that waits one attempt more and all together FLUSH_SECONDS; what is left then is lost."""
        self._closing.set()
        if self._waiting:
            await asyncio.wait(self._waiting, timeout=FLUSH_SECONDS)
        self._closed = True
        for task in self._waiting:
            task.cancel()
        if self._waiting:
            await asyncio.wait(self._waiting)
        if self._session is not None:
            await self._session.close()
        if lost := self._ended["lost"]:
            logger.error("webhook", outcome="lost", calls=lost, why="the process ends")

    async def _outcome(self, call: Call) -> tuple[Outcome, str]:
        for failures in range(1, self._table.attempts + 1):
            async with self._places:
                closing = self._closing.is_set()
                answer = await self._attempt(call)
            if answer.verdict != "failed":
                return answer.verdict, answer.why
            if closing:
                return "lost", answer.why
            if failures < self._table.attempts:
                await self._pause(wait_s(failures, answer.retry_after_s, self._draw))
        return "given_up", answer.why

    async def _pause(self, seconds: float) -> None:
        """Ends early when the process does."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    async def _attempt(self, call: Call) -> Answer:
        if self._session is None:
            self._session = _session(self._user_agent)
        headers = self._signer.headers(call.id, call.body, now=time.time())
        try:
            async with asyncio.timeout(self._table.timeout_seconds):
                response = await self._session.post(
                    self._table.url,
                    data=io.BytesIO(call.body),
                    headers=headers,
                    proxy=self._proxy,
                    allow_redirects=False,
                )
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            return Answer("failed", type(error).__name__)
        await _finish(response)
        after_s = retry_after.seconds(response.headers.get("retry-after"), datetime.now(UTC))
        return Answer(verdict(response.status), str(response.status), after_s)

    def _over(self, call: Call, task: asyncio.Task[tuple[Outcome, str]]) -> None:
        self._waiting.discard(task)
        self._held_bytes -= len(call.body)
        self._end(*(("lost", "") if task.cancelled() else task.result()))

    def _end(self, outcome: Outcome, why: str) -> None:
        self._ended[outcome] += 1
        if outcome in ("delivered", "lost"):
            return
        self._untold[outcome] += 1
        now = asyncio.get_running_loop().time()
        if now >= self._quiet_until.get(outcome, 0):
            self._quiet_until[outcome] = now + QUIET_SECONDS
            logger.warning("webhook", outcome=outcome, calls=self._untold.pop(outcome), why=why)


def _session(user_agent: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=CALLS_AT_ONCE, keepalive_timeout=KEEP_ALIVE_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": user_agent, "Content-Type": "application/json"},
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None),
        read_bufsize=MAX_ANSWER_BYTES // 2,  # aiohttp stops reading at twice this
    )


async def _finish(response: aiohttp.ClientResponse) -> None:
    """Reads on to the end, if that is near: then the connection is given back by itself, and can be used again."""
    left = MAX_ANSWER_BYTES
    with contextlib.suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(ANSWER_SECONDS):
            while left > 0 and (piece := await response.content.read(left)):
                left -= len(piece)
    response.close()
