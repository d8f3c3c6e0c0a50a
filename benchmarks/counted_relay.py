"""A relay that tells how many tasks it has, for the soak: `python -m benchmarks.counted_relay FILE`.

It remembers the ids of 2,000 streams that are no more, and not of 100,000: what is bounded reaches its bound early in
the run, and does not look like a leak until then.
"""

import asyncio
import sys
from pathlib import Path
from typing import Final

from app import gone, server
from app.settings import load

TELL_SECONDS: Final = 0.5
REMEMBERED: Final = 2_000


async def serve(told: Path) -> None:
    telling = asyncio.create_task(_tell(told), name="counting")
    try:
        await server.serve(load())
    finally:
        telling.cancel()


async def _tell(told: Path) -> None:
    while True:
        await asyncio.sleep(TELL_SECONDS)
        _write(told, len(asyncio.all_tasks()))


def _write(told: Path, tasks: int) -> None:
    told.write_text(str(tasks))


if __name__ == "__main__":
    setattr(gone, "GONE_MAX", REMEMBERED)  # noqa: B010 — a constant, which is another one here
    server.run(serve(Path(sys.argv[1])))
