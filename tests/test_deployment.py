"""What a deployment is made of: the compose file, the Kubernetes manifest, and the orders between all that wait.

`tests/data/compose-spec.json` is the schema of the compose specification; whose it is stands beside it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import chain, combinations
from pathlib import Path
from typing import Any, Final

import jsonschema_rs
import pytest
import yaml  # type: ignore[import-untyped]
from uvicorn.importer import import_from_string

from app import admin, server
from app.settings import Settings, variable
from app.webhook import calls
from tests.nginx import seconds

ROOT: Final = Path(__file__).parents[1]
COMPOSE: Final[dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]
RELAY: Final = SERVICES["relay"]
MANIFEST: Final[dict[str, dict[str, Any]]] = {
    each["kind"]: each for each in yaml.safe_load_all((ROOT / "docs/kubernetes.yaml").read_text())
}
POD: Final = MANIFEST["Deployment"]["spec"]["template"]["spec"]
CONTAINER: Final = POD["containers"][0]
CONTAINER_VARIABLES: Final = {each["name"]: each["value"] for each in CONTAINER["env"]}
PROFILES: Final = ("demo", "observability")
SELECTIONS: Final = [*chain.from_iterable(combinations(PROFILES, n) for n in range(3))]
DEFAULTS: Final[Any] = Settings.model_construct()

AFTER_THE_GRACE_SECONDS: Final = (
    server.LAST_WORDS_SECONDS + server.CUT_SECONDS + admin.LAST_WORDS_SECONDS + calls.FLUSH_SECONDS
)
"""What a drain may take once its grace is over: connections, the admin listener, the webhook's last calls."""


def selected(profiles: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The services of `docker compose` with these profiles."""
    return {
        name: each for name, each in SERVICES.items() if not each.get("profiles") or {*each["profiles"]} & {*profiles}
    }


@pytest.mark.parametrize("profiles", SELECTIONS, ids="+".join)
def test_the_compose_file_is_valid_with_any_profiles(profiles: tuple[str, ...]) -> None:
    schema = json.loads((ROOT / "tests/data/compose-spec.json").read_text())
    services = selected(profiles)
    jsonschema_rs.validator_for(schema).validate(COMPOSE | {"services": services})
    for name, service in services.items():
        wanted = {other for other, how in service.get("depends_on", {}).items() if how.get("required", True)}
        assert wanted <= services.keys(), name


def test_compose_itself_takes_it_with_any_profiles() -> None:
    """Where there is a compose command: its own reading is stricter than the schema."""
    own = Path(sys.executable).with_name("docker-compose")
    docker = shutil.which("docker")
    plugin = docker is not None and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0
    command = [str(own)] if own.exists() else ["docker", "compose"] if plugin else None
    for profiles in SELECTIONS if command else ():
        options = [f"--profile={profile}" for profile in profiles]
        config = [*(command or ()), *options, "config", "--services"]
        found = subprocess.run(config, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert {*found.split()} == selected(profiles).keys()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_more_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert service["init"] is True
    assert service["restart"] == "unless-stopped"
    assert "build" in service or re.search(r":v?\d+\.\d+", service["image"]), "an image is pinned by its tag"
    assert "build" in service or re.fullmatch(r"[1-9]\d*:\d+", service["user"]), "nobody is root"
    assert "healthcheck" in service or service is RELAY, "the relay has that of its image"


def test_a_service_starts_when_those_it_needs_are_healthy() -> None:
    assert RELAY["depends_on"]["redis"] == {"condition": "service_healthy"}
    assert SERVICES["nginx"]["depends_on"]["relay"] == {"condition": "service_healthy"}
    assert all(
        how["condition"] == "service_healthy"
        for each in SERVICES.values()
        for how in each.get("depends_on", {}).values()
    )


def test_only_nginx_can_be_reached_from_outside() -> None:
    published = {name: each["ports"] for name, each in SERVICES.items() if "ports" in each}
    assert published.keys() == {"nginx", "grafana"}
    assert all(port.startswith("127.0.0.1:") for port in published["grafana"]), "and Grafana from this machine"
    internal = {name for name, network in COMPOSE["networks"].items() if network and network.get("internal")}
    for name in SERVICES.keys() - {"nginx", "relay", "grafana"}:
        assert {*SERVICES[name]["networks"]} <= internal, name
    assert not {*SERVICES["nginx"]["networks"]} & {*SERVICES["redis"]["networks"]}


def test_each_deadline_is_longer_than_the_one_within_it() -> None:
    told = RELAY["environment"]
    assert told["RELAY_TIMEOUT_TOTAL_SECONDS"] <= told["RELAY_MAX_TIMEOUT_TOTAL_SECONDS"]
    assert told["RELAY_MAX_TIMEOUT_TOTAL_SECONDS"] < told["RELAY_DRAIN_GRACE_SECONDS"]
    stop_s = int(RELAY["stop_grace_period"].removesuffix("s"))
    assert told["RELAY_DRAIN_GRACE_SECONDS"] + AFTER_THE_GRACE_SECONDS < stop_s
    assert stop_s <= seconds("worker_shutdown_timeout")[0]
    assert SERVICES["nginx"]["stop_grace_period"] == RELAY["stop_grace_period"], "nginx goes on as long as the relays"
    assert SERVICES["nginx"]["stop_signal"] == "SIGQUIT", "at SIGTERM nginx would cut its streams"


def test_silence_is_broken_before_anybody_takes_it_for_an_end() -> None:
    heartbeat_s = float(RELAY["environment"].get("RELAY_HEARTBEAT_SECONDS", DEFAULTS.heartbeat_seconds))
    assert heartbeat_s < seconds("proxy_read_timeout")[0]
    [idle] = re.findall(r"keepalive_timeout (\d+)s;", (ROOT / "nginx/pool.conf").read_text())
    assert int(idle) < server.KEEP_ALIVE_SECONDS
    assert DEFAULTS.drain_grace_seconds < DEFAULTS.drain_grace_seconds + server.LAST_WORDS_SECONDS + server.CUT_SECONDS


def test_all_settings_that_are_named_exist() -> None:
    texts = [
        (ROOT / name).read_text()
        for name in ("docker-compose.yml", "Dockerfile", "docs/kubernetes.yaml", "docs/deploy.md")
    ]
    named = {name for text in texts for name in re.findall(r"\b(?:RELAY|OPENAI)_[A-Z_]+\b", text)}
    known = {variable(field) for field in Settings.model_fields}
    assert named - known == {"RELAY_PORT"} - known
    for given in (RELAY["environment"], CONTAINER_VARIABLES):
        fields = {name.removeprefix("RELAY_").lower(): value for name, value in given.items()}
        Settings(**fields)


DEMO: Final = "http://demo-upstream:9000/v1 demo true serve"
NOTHING: Final = "none none none serve"


@pytest.mark.parametrize(
    ("files", "host", "told"),
    [((), True, DEMO), ((), False, NOTHING), (("openai_api_key",), True, NOTHING), (("relay.toml",), True, NOTHING)],
)
def test_the_demonstration_is_for_who_has_neither_key_nor_settings(
    tmp_path: Path, files: tuple[str, ...], host: bool, told: str
) -> None:
    """The entrypoint as it is, with a name server and a relay that tell what they were asked."""
    programs = tmp_path / "bin"
    programs.mkdir()
    says = 'echo "${OPENAI_BASE_URL-none} ${RELAY_DEFAULT_MODEL-none} ${RELAY_ALLOW_ANONYMOUS-none} $@"'
    for name, text in {"getent": f"[ $2 = demo-upstream ] && {str(host).lower()}", "sse-relay": says}.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for name in files:
        (secrets / name).touch()
    command = [part.replace("$$", "$") for part in (*RELAY["entrypoint"], *RELAY["command"])]
    path = f"{programs}:{os.environ['PATH']}"
    ran = subprocess.run(command, cwd=secrets, env={"PATH": path}, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == told


def test_the_demonstration_has_an_upstream() -> None:
    entrypoint = SERVICES["demo-upstream"]["entrypoint"]
    assert callable(import_from_string(entrypoint[entrypoint.index("--factory") + 1]))
    assert entrypoint[-2:] == ["--port", "9000"]


def test_prometheus_reads_the_admin_listener_and_grafana_what_is_shipped() -> None:
    prometheus = yaml.safe_load((ROOT / "observability/prometheus/prometheus.yml").read_text())
    [relay] = [job for job in prometheus["scrape_configs"] if job["job_name"] == "relay"]
    assert relay["dns_sd_configs"][0]["names"] == ["relay"]
    assert relay["dns_sd_configs"][0]["port"] == DEFAULTS.admin_port
    assert {*SERVICES["prometheus"]["networks"]} & {*RELAY["networks"]}
    mounted = [volume.split(":")[0] for each in SERVICES.values() for volume in each.get("volumes", ())]
    assert all((ROOT / path).is_dir() for path in mounted if path.startswith("./"))
    assert all((ROOT / "observability/prometheus" / name).is_file() for name in prometheus["rule_files"])


def test_a_pod_ends_after_its_streams_and_is_not_killed_for_being_busy() -> None:
    pause_s = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][-1])
    grace_s = float(CONTAINER_VARIABLES["RELAY_DRAIN_GRACE_SECONDS"])
    assert pause_s > 0
    assert float(CONTAINER_VARIABLES["RELAY_MAX_TIMEOUT_TOTAL_SECONDS"]) < grace_s
    assert pause_s + grace_s + AFTER_THE_GRACE_SECONDS < POD["terminationGracePeriodSeconds"]
    probes = {kind: CONTAINER[f"{kind}Probe"]["httpGet"] for kind in ("readiness", "liveness")}
    assert probes == {
        "readiness": {"path": "/readyz", "port": "admin"},
        "liveness": {"path": "/healthz", "port": "admin"},
    }
    assert {each["name"]: each["containerPort"] for each in CONTAINER["ports"]} == {"http": 8000, "admin": 8001}
    assert CONTAINER_VARIABLES["RELAY_ADMIN_HOST"] == "0.0.0.0"


def test_a_pod_has_no_more_than_it_needs() -> None:
    assert POD["enableServiceLinks"] is False, "a service called relay would set RELAY_PORT"
    assert POD["automountServiceAccountToken"] is False
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["runAsUser"] == 10001, "the image's"
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"] is True
    assert CONTAINER["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert MANIFEST["Service"]["spec"]["ports"][0]["targetPort"] == "http"
    assert all(port["port"] != "admin" for port in MANIFEST["NetworkPolicy"]["spec"]["ingress"][0]["ports"])
