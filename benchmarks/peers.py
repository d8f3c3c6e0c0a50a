"""Gateways by others, each in a virtual environment of its own below benchmarks/out; nothing of theirs touches ours."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.contenders import OPENAI_PATH, Contender
from benchmarks.processes import OUT

INSTALL_SECONDS: Final = 900

LITELLM_VERSION: Final = "1.106.0"
LITELLM_CONFIG: Final = """
model_list:
  - model_name: "*"
    litellm_params:
      model: "openai/*"
      api_base: "http://127.0.0.1:{upstream_port}/v1"
      api_key: "x"
"""

LM_PROXY_VERSION: Final = "3.3.2"
LM_PROXY_CONFIG: Final = """
host = "127.0.0.1"
port = {port}
api_key_check = "lm_proxy.api_key_check.AllowAll"

[connections.upstream]
api_type = "openai"
api_base = "http://127.0.0.1:{upstream_port}/v1"
api_key = "x"

[routing]
"*" = "upstream.*"
"""


class Peer(msgspec.Struct, frozen=True):
    """A package of the index, and the program in it that is started."""

    requirement: str
    folder: Path
    contender: Contender


def _peer(name: str, version: str, requirement: str, command: tuple[str, ...], **more: object) -> Peer:
    """Few openings and tokens: they take long for each."""
    folder = OUT / f"{requirement.partition('[')[0]}-{version}"
    program, *arguments = command
    whole = (str(folder / "bin" / program), *arguments)
    contender = Contender(f"{name} {version}", whole, OPENAI_PATH, "openai", openings=60, flood_tokens=100, peer=True)
    return Peer(f"{requirement}=={version}", folder, msgspec.structs.replace(contender, **more))


PEERS: Final = (
    _peer(
        "LiteLLM",
        LITELLM_VERSION,
        "litellm[proxy]",
        ("litellm", "--config", "litellm.yaml", "--host", "127.0.0.1", "--port", "{port}"),
        # It starts without a key of its own for its callers only when it is told that this is meant.
        settings=(
            ("LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY", "true"),
            ("LITELLM_TELEMETRY", "False"),
            ("LITELLM_LOCAL_MODEL_COST_MAP", "True"),
        ),
        files=(("litellm.yaml", LITELLM_CONFIG),),
    ),
    _peer(
        "LM-Proxy",
        LM_PROXY_VERSION,
        "lm-proxy",
        ("lm-proxy", "--config", "lm-proxy.toml"),
        files=(("lm-proxy.toml", LM_PROXY_CONFIG),),
    ),
)


def install_peers() -> tuple[list[Contender], list[str]]:
    """Those that can be installed here, and notes about those that cannot."""
    there, notes = [], []
    for peer in PEERS:
        try:
            _install(peer)
        except (subprocess.SubprocessError, OSError) as error:
            notes.append(f"{peer.contender.name} could not be installed ({type(error).__name__}): it is left out.")
        else:
            there.append(peer.contender)
    return there, notes


def _install(peer: Peer) -> None:
    """The stamp comes last, so that an installation that was cut off is begun again."""
    stamp = peer.folder / ".installed"
    if stamp.exists():
        return
    print(f"installing {peer.requirement} into {peer.folder.name} …", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", peer.folder], check=True)
    pip = (str(peer.folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    subprocess.run([*pip, peer.requirement], check=True, timeout=INSTALL_SECONDS)
    stamp.touch()
