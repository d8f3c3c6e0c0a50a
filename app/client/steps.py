"""What a reading has its shell do."""

import random
from typing import Final

import msgspec

from app.client.events import ClientEvent
from app.client.problems import RelayProblem
from app.client.wire import Request

MAX_BACKOFF_SECONDS: Final = 8.0
MAX_RETRY_AFTER_SECONDS: Final = 30.0
MAX_DOUBLINGS: Final = 16


class Open(msgspec.Struct, frozen=True):
    request: Request


class Receive(msgspec.Struct, frozen=True):
    pass


class Pause(msgspec.Struct, frozen=True):
    seconds: float


class End(msgspec.Struct, frozen=True):
    problem: RelayProblem | None = None


Step = ClientEvent | Open | Receive | Pause | End


class Persistence(msgspec.Struct, frozen=True):
    """How often in a row a lost stream is asked for again, the first time after about `backoff_seconds`, each next time
    after twice as long, 8 s at most."""

    reconnects: int
    backoff_seconds: float

    def pause(self, failures: int, at_least_seconds: float) -> Pause:
        backoff_seconds = min(MAX_BACKOFF_SECONDS, self.backoff_seconds * 2 ** min(failures, MAX_DOUBLINGS))
        # Jitter: a relay that restarts must not meet all its readers in the same moment.
        jittered_seconds = backoff_seconds * random.uniform(0.5, 1)
        return Pause(max(min(MAX_RETRY_AFTER_SECONDS, at_least_seconds), jittered_seconds))
