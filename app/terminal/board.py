"""How `sse-relay top` looks: a head of a few lines, and a table of as many streams as there is room for."""

from collections.abc import Callable, Iterable
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.terminal.screen import CONTROLS
from app.terminal.seen import Seen, StreamSeen, UpstreamSeen

HEAD_LINES: Final = 6
"""Two lines and a blank one above the table, its heading, and at the bottom a line that says what is left out, and one
with the keys.
"""

STATUS_STYLES: Final = {"ready": "bold green", "draining": "bold yellow"}
PHASE_STYLES: Final = {"streaming": "green", "queued": "yellow"}
STATE_STYLES: Final = {"closed": "green", "half_open": "yellow"}

SORTS: Final[dict[str, Callable[[StreamSeen], object]]] = {
    "age": lambda stream: -stream.age_s,
    "lag": lambda stream: (-stream.lag_bytes, -stream.age_s),
    "caller": lambda stream: (stream.caller, -stream.age_s),
    "model": lambda stream: (stream.model, -stream.age_s),
    "upstream": lambda stream: (stream.upstream or "", -stream.age_s),
}


def board(seen: Seen, url: str, *, sort: str, room: tuple[int, int], note: Text) -> RenderableType:
    """Fits a terminal that has room for so many columns and lines; `note` is its last line."""
    columns, lines = room
    upstreams = _upstreams(seen.readiness.upstreams)
    # A head that has to break its lines would push the table out.
    head = [_cut(part, columns) for part in (_status(seen, url), upstreams)]
    most = max(lines - HEAD_LINES, 1)
    left_out = len(seen.streams) - most
    more = Text(f"… and {left_out} more" if left_out > 0 else "", style="dim")
    table = streams(seen, sort=sort, most=most)
    return Group(*head, "", table, more, _cut(note, columns))


def whole(seen: Seen, url: str) -> RenderableType:
    """All of it, as wide as it is."""
    upstreams = _upstreams(seen.readiness.upstreams)
    return Group(_status(seen, url), upstreams, "", streams(seen, sort="age", most=None))


def streams(seen: Seen, *, sort: str, most: int | None) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("stream", "caller", "model", "upstream"):  # where room is short, these lose letters, the longest first
        table.add_column(_plain(name.upper(), "bold"))
    table.add_column("PHASE", header_style="bold", no_wrap=True)
    for name in ("age", "readers", "lag"):
        table.add_column(name.upper(), header_style="bold", no_wrap=True, justify="right")
    for stream in sorted(seen.streams, key=SORTS[sort])[:most]:  # type: ignore[arg-type]
        names = (_plain(name) for name in (stream.id, stream.caller, stream.model, stream.upstream or "-"))
        phase = Text(stream.phase, PHASE_STYLES.get(stream.phase, ""))
        figures = (age(stream.age_s), str(stream.readers), size(stream.lag_bytes) if stream.lag_bytes else "-")
        table.add_row(*names, phase, *figures)
    return table


def age(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{seconds:.1f} s"


def size(count: int) -> str:
    for unit, factor in (("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def _status(seen: Seen, url: str) -> Text:
    now = seen.readiness
    parts = [
        f"streams {now.streams.running}/{now.streams.max}",
        f"queue {now.queue.waiting}/{now.queue.max}",
        f"logs {size(now.log.bytes)} of {size(now.log.max_bytes)}",
    ]
    if seen.loop_lag_s is not None:
        parts.append(f"loop lag {seen.loop_lag_s * 1000:.0f} ms")
    if now.shared_log is not None:
        parts.append(f"shared log {now.shared_log}")
    status = _plain(now.status, STATUS_STYLES.get(now.status, "bold red"))
    return Text.assemble(status, f"  {' · '.join(parts)}", ("  " + url, "dim"))


def _upstreams(upstreams: Iterable[UpstreamSeen]) -> Text:
    text = Text("upstreams ")
    for number, each in enumerate(upstreams):
        most = "" if each.max_streams is None else f"/{each.max_streams}"
        text.append(" · " if number else "").append_text(_plain(f"{each.name} "))
        text.append(each.state, STATE_STYLES.get(each.state, "bold red")).append(f" {each.streams}{most}")
        text.append(_trouble(each))
    return text


def _trouble(upstream: UpstreamSeen) -> str:
    parts = [f"{upstream.failures} failed"] if upstream.failures else []
    if upstream.opens_in_s:
        parts.append(f"again in {upstream.opens_in_s:.0f} s")
    if upstream.rests_s:
        parts.append(f"rests {upstream.rests_s:.0f} s")
    return f" ({', '.join(parts)})" if parts else ""


def _plain(name: str, style: str = "") -> Text:
    """Clients name models as they like: a name is no markup and steers no terminal."""
    return Text(name.translate(CONTROLS), style, no_wrap=True, overflow="ellipsis")


def _cut(text: Text, columns: int) -> Text:
    text.truncate(columns, overflow="ellipsis")
    return text
