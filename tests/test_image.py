"""The image: what the Dockerfile says, and that its probe is true. Building it takes an engine (docs/deploy.md)."""

import asyncio
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Final

from tests.served import SERVE, served
from tests.terminal import environment
from tests.upstream import Upstream

ROOT: Final = Path(__file__).parents[1]
DOCKERFILE: Final = (ROOT / "Dockerfile").read_text()


def instructions(name: str) -> list[str]:
    """The arguments of each instruction of that name in the Dockerfile, on one line."""
    return re.findall(rf"(?m)^{name} (.*)$", DOCKERFILE.replace("\\\n", ""))


def test_the_image_is_made_of_what_is_named() -> None:
    listed = (ROOT / ".dockerignore").read_text().splitlines()
    assert listed[1] == "*", "all that is not named stays out"
    copied = {path for line in instructions("COPY") if "--from" not in line for path in line.split()[:-1]}
    assert copied == {line.removeprefix("!") for line in listed if line.startswith("!")}
    assert all((ROOT / path).exists() for path in copied)
    assert all("." not in line.split()[0].split(":")[0] for line in instructions("FROM")), "no registry's host"
    assert "--require-hashes" in DOCKERFILE
    assert "--only-binary :all:" in DOCKERFILE
    assert "://" not in DOCKERFILE.replace("sse-relay demo", "")


def test_the_image_runs_as_nobody_and_hears_signals_itself() -> None:
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"(?m)^USER [1-9]\d*:[1-9]\d*$", final)
    assert json.loads(instructions("ENTRYPOINT")[-1]) == ["sse-relay"]
    assert json.loads(instructions("CMD")[-1]) == ["serve"]
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    assert "RELAY_ALLOW_ANONYMOUS=" not in "".join(instructions("ENV"))
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f'org.opencontainers.image.version="{version}"' in final


async def test_the_image_knows_whether_its_relay_lives(tmp_path: Path) -> None:
    """The HEALTHCHECK as it is, but for the Python; a proxy that is set for upstreams is not asked."""
    [check] = instructions("HEALTHCHECK")
    probe = json.loads(check.partition(" CMD ")[2])[1:]

    async def code(port: int) -> int:
        variables = {"RELAY_PORT": str(port), "HTTP_PROXY": "http://127.0.0.1:9"}
        quiet = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(
            sys.executable, *probe, env=environment(tmp_path, variables), stderr=quiet
        )
        return await process.wait()

    async with Upstream() as upstream, served(tmp_path, upstream, *SERVE) as relay:
        assert await code(relay.port) == 0
    assert await code(relay.port) == 1
