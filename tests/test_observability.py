"""What an operator is given holds together: every name in the dashboard, the alerts and docs/operate.md is one that a
relay really has, and whatever it has is explained there.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from app.errors import CODES
from app.stream import Cause
from app.telemetry import stream_log
from tests.redis_server import redis_server
from tests.relay import SSE, ask, chat, connect, event_of, fetch, running, subject
from tests.summaries import ended
from tests.upstream import Upstream, chunk, chunks, finish, hang, head, reset
from tests.webhook_receiver import Receiver

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = (ROOT / "docs/operate.md").read_text(encoding="utf-8")
ALERTS: Final = yaml.safe_load((ROOT / "observability/prometheus/alerts.yml").read_text(encoding="utf-8"))
RULES: Final = [rule for group in ALERTS["groups"] for rule in group["rules"]]
DASHBOARD: Final = json.loads((ROOT / "observability/grafana/dashboards/relay.json").read_text(encoding="utf-8"))
PANELS: Final = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ROWS: Final = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
TARGETS: Final = [target for panel in PANELS for target in panel["targets"]]

SCRAPERS_LABELS: Final = frozenset({"job", "instance"})
SCRAPERS_METRICS: Final = {"up": SCRAPERS_LABELS}
WORDS_OF_PROMQL: Final = {
    *("sum", "min", "max", "count", "rate", "increase", "changes", "time", "histogram_quantile", "and", "or"),
    *("by", "on", "ignoring", "without"),
}
OUTCOMES: Final = {"finished", *get_args(Cause), *CODES}


class Family(msgspec.Struct, frozen=True):
    """A metric as it is exposed: by its name in full, without the suffixes of a histogram."""

    kind: str
    labels: frozenset[str]
    samples: frozenset[str]
    values: frozenset[str]


Families = Mapping[str, Family]


@pytest.fixture(scope="module")
async def families(tmp_path_factory: pytest.TempPathFactory) -> Families:
    """All that a relay exposes that has everything, and for which everything has happened once."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HOOK_SECRET", "a secret of both")
        folder = tmp_path_factory.mktemp("observability")
        async with Receiver() as receiver, Upstream() as upstream, redis_server(folder) as redis:
            upstream.script((head(), chunk("Hel"), chunks("lo", "!"), finish()))
            upstream.script((head(), chunk("Hel"), reset()), model="broken")
            upstream.script((head(), chunk("Hel"), hang()), model="endless")
            async with running(
                upstream.base_url,
                redis_url=redis.url,
                webhook={"url": receiver.url, "secret_env": "HOOK_SECRET"},
                upstreams={"first": {"base_url": upstream.base_url, "max_streams": 9}},
                attempts=1,
            ) as relay:
                for model in ("m", "broken"):
                    await ask(relay.port, chat(model=model))
                await _stopped(relay.port)
                await ask(relay.port, {"message": 1})
                desk = relay._app.state.desk
                return _read((await desk.metrics.exposition(desk.overview.now())).decode())


async def _stopped(port: int) -> None:
    async with connect(port) as connection:
        response = await connection.request("POST", "/chat/stream", chat(model="endless"), SSE | subject("a"))
        blocks = response.blocks()
        while event_of(await anext(blocks))["type"] != "start":  # pings come before it where nothing else has for long
            pass
        await fetch(port, "DELETE", f"/chat/stream/{response.headers['x-stream-id']}", headers=subject("a"))
        assert [event_of(block)["type"] async for block in blocks][-1] == "[DONE]"


def _read(text: str) -> Families:
    found = {}
    for family in text_string_to_metric_families(text):
        pairs = {pair for sample in family.samples for pair in sample.labels.items()}
        found[f"{family.name}_total" if family.type == "counter" else family.name] = Family(
            family.type,
            frozenset(name for name, _ in pairs) - {"le"},
            frozenset(sample.name for sample in family.samples),
            frozenset(value for _, value in pairs),
        )
    return found


# The page


def rows(heading: str) -> list[list[str]]:
    """The cells of the tables of a section, without their heads."""
    section = re.split(rf"^#+ {re.escape(heading)}$", PAGE, flags=re.MULTILINE)[1]
    level = len(re.findall(rf"^(#+) {re.escape(heading)}$", PAGE, flags=re.MULTILINE)[0])
    section = re.split(rf"^#{{1,{level}}} ", section, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


def words(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


async def test_every_metric_is_explained_with_its_type_and_labels(families: Families) -> None:
    told = {
        name: (kind, words(labels))
        for cells in rows("Metrics")
        for name, (kind, labels) in [(cells[0].strip("`"), (cells[1], cells[2]))]
    }
    assert told == {name: (family.kind, set(family.labels)) for name, family in families.items()}


def test_every_field_of_a_streams_line_is_explained() -> None:
    with capture_logs() as logs:
        stream_log.tell(ended(), 0.001)
    [line] = logs
    told = [cells[0].strip("`") for cells in rows("One line for each stream")]
    assert sorted(told) == sorted(line.keys() - {"event", "log_level"})


def test_every_other_line_is_explained_with_its_fields() -> None:
    told = {cells[0].strip("`"): words(cells[2]) for cells in rows("Other lines")}
    logged: dict[str, set[str]] = {}
    for event, fields in _logged():
        logged.setdefault(event, set()).update(fields)
    assert told == logged


def _logged() -> Iterator[tuple[str, set[str]]]:
    """What the source writes to the log but for the line of a stream: events, and the names of their fields."""
    for file in sorted((ROOT / "app").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (told := _line(node)):
                yield told


def _line(call: ast.Call) -> tuple[str, set[str]] | None:
    match call:
        case ast.Call(func=ast.Attribute(value=ast.Name("logger"), attr=level), args=[ast.Constant(str(event))]):
            named = {keyword.arg for keyword in call.keywords if keyword.arg and keyword.arg != "exc_info"}
            traced = level == "exception" or any(keyword.arg == "exc_info" for keyword in call.keywords)
            return event, named | ({"exception"} if traced else set())
        case _:
            return None


# The alerts


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


HEADINGS: Final = re.findall(r"^#+ (.+)$", PAGE, flags=re.MULTILINE)


def test_every_alert_has_its_section_and_every_section_its_alert() -> None:
    section = PAGE.split("## When an alert fires")[1].split("\n## ")[0]
    headings = re.findall(r"^### (.+)$", section, flags=re.MULTILINE)
    assert sorted(headings) == sorted(rule["alert"] for rule in RULES)
    for heading, text in zip(headings, re.split(r"^### .+$", section, flags=re.MULTILINE)[1:], strict=True):
        assert re.findall(r"^- \*\*(\w+)\*\*", text, flags=re.MULTILINE) == ["Means", "See", "Do"], heading


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_what_is_wrong_and_where_help_is(rule: Any) -> None:
    said = rule["annotations"]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert said["summary"]
    assert said["description"]
    assert said["runbook_url"] == f"docs/operate.md#{anchor(rule['alert'])}"


def test_links_within_the_page_lead_somewhere() -> None:
    anchors = {anchor(heading) for heading in HEADINGS}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors
    files = re.findall(r"\]\(([\w/.-]+\.md)(?:#[^)]*)?\)", PAGE)
    assert [name for name in files if not (ROOT / "docs" / name).exists()] == []


# Expressions


class Asked(msgspec.Struct, frozen=True):
    """What an expression asks for: `matched` are (metric, label, value), values of a choice one by one."""

    metrics: frozenset[str]
    matched: frozenset[tuple[str, str, str]]
    grouped: frozenset[str]


def asked(expression: str) -> Asked:
    matched = set()
    for metric, matchers in re.findall(r"(\w+)\{([^}]*)\}", expression):
        for label, operator, value in re.findall(r'(\w+)(=~|!=|!~|=)"([^"]*)"', matchers):
            choices = value.split("|") if "~" in operator else [value]
            matched |= {(metric, label, choice) for choice in choices}
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]", "", expression)
    groups = re.findall(r"\b(?:by|on|ignoring|without)\s*\(([^)]*)\)", bare)
    bare = re.sub(r"\b(by|on|ignoring|without)\s*\([^)]*\)", "", bare)
    names = set(re.findall(r"[A-Za-z_:][\w:]*", bare)) - WORDS_OF_PROMQL
    grouped = {label.strip() for group in groups for label in group.split(",")}
    return Asked(frozenset(names), frozenset(matched), frozenset(grouped))


def test_expressions_are_read_as_they_are_meant() -> None:
    expression = 'sum by (le, a) (rate(x_bucket{b="1", c=~"2|3", instance=~"$instance"}[5m])) / y > 0.5 and time() > 1'
    assert asked(expression) == Asked(
        frozenset({"x_bucket", "y"}),
        frozenset({("x_bucket", "b", "1"), ("x_bucket", "c", "2"), ("x_bucket", "c", "3")})
        | {("x_bucket", "instance", "$instance")},
        frozenset({"le", "a"}),
    )


EXPRESSIONS: Final = [rule["expr"] for rule in RULES] + [target["expr"] for target in TARGETS]


async def test_every_name_in_an_expression_is_one_that_a_relay_has(families: Families) -> None:
    labels = {sample: family.labels | SCRAPERS_LABELS for family in families.values() for sample in family.samples}
    labels |= SCRAPERS_METRICS
    values = {value for family in families.values() for value in family.values} | OUTCOMES
    for expression in EXPRESSIONS:
        found = asked(expression)
        assert found.metrics, expression
        assert found.metrics <= labels.keys(), expression
        for metric, label, value in found.matched:
            assert label in labels[metric], expression
            assert value in values or label in SCRAPERS_LABELS, expression
        assert found.grouped <= {"le"}.union(*(labels[metric] for metric in found.metrics)), expression


# The dashboard


async def test_a_legend_names_labels_that_its_expression_keeps(families: Families) -> None:
    labels = {sample: family.labels | SCRAPERS_LABELS for family in families.values() for sample in family.samples}
    for target in TARGETS:
        found = asked(target["expr"])
        kept = found.grouped or set().union(*(labels[metric] for metric in found.metrics))
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept, target["expr"]


def test_the_dashboard_can_be_provisioned_for_any_prometheus() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["instance"]["definition"] == "label_values(relay_info, instance)"
    sources = [each["datasource"] for each in (*PANELS, *TARGETS)]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert ROWS == ["Traffic", "Latency", "Failures", "Upstreams", "Capacity", "Process"]
    assert all(panel["title"] and panel["description"] for panel in PANELS)
    assert all("$instance" in target["expr"] for target in TARGETS)


def test_no_panel_lies_over_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


async def test_every_metric_is_shown_or_watched(families: Families) -> None:
    """But for those that only explain others."""
    seen = frozenset().union(*(asked(expression).metrics for expression in EXPRESSIONS))
    unseen = {name for name, family in families.items() if not family.samples & seen and name not in seen}
    assert unseen == {"gen_ai_client_token_usage", "process_virtual_memory_bytes"}
