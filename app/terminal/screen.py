"""Where an answer goes. Its text is on stdout, everything about it on stderr: piped, stdout holds the answer alone."""

import sys
from typing import Final, Protocol

from rich.console import Console

from app.client import ClientEvent, RelayProblem

DIM: Final = "\x1b[2m"
RED: Final = "\x1b[31m"
PLAIN: Final = "\x1b[0m"
CONTROLS: Final = dict.fromkeys([*range(0x00, 0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)])
"""All but tab and line feed. A model that can be talked into escape sequences could else retitle the window, hide text
or fill the clipboard."""


class Screen(Protocol):
    """What shows one answer after the other."""

    def show(self, event: ClientEvent) -> None:
        """The next event of the answer, at once."""

    def finish(self, done: ClientEvent) -> None:
        """The answer is whole or was stopped."""

    def break_off(self) -> None:
        """The answer is not whole; what follows is about that."""


class Typewriter:
    """For people: text as it arrives, reasoning dimmed and on a terminal alone, then one line of facts."""

    def __init__(self) -> None:
        self._out_is_terminal: Final = sys.stdout.isatty()
        self._dims: Final = _styled(Console(file=sys.stdout))
        self._thinking = False
        self._line_open = False

    def show(self, event: ClientEvent) -> None:
        if event.reasoning and self._out_is_terminal:
            self._write(event.reasoning, thinking=True)
        elif text := event.content or event.refusal:
            self._write(text, thinking=False)
        if event.tool_call and event.tool_call.name:
            note(f"calls the tool {event.tool_call.name}")

    def finish(self, done: ClientEvent) -> None:
        self.break_off()
        note(facts(done))

    def break_off(self) -> None:
        if self._line_open:
            self._write("\n", thinking=False)
        self._thinking = False

    def _write(self, text: str, *, thinking: bool) -> None:
        if self._out_is_terminal:
            text = text.translate(CONTROLS)
        turn = "\n\n" if self._thinking and not thinking and self._line_open and text != "\n" else ""
        self._thinking = thinking
        self._line_open = not (turn + text).endswith("\n")
        sys.stdout.write(turn + (f"{DIM}{text}{PLAIN}" if thinking and self._dims else text))
        sys.stdout.flush()


class JsonLines:
    """For scripts: every event as the relay sent it, one JSON object a line."""

    def show(self, event: ClientEvent) -> None:
        sys.stdout.write(event.json + "\n")
        sys.stdout.flush()

    def finish(self, done: ClientEvent) -> None:
        pass

    def break_off(self) -> None:
        pass


def note(text: str) -> None:
    """A remark of ours, dimmed."""
    _remark(text, DIM)


def complain(text: str) -> None:
    """What went wrong and what to do about it."""
    _remark(f"sse-relay: {text}", RED)


def facts(done: ClientEvent) -> str:
    """One line on an answer: its tokens, how long the first took and how fast the others came, and why it ended."""
    parts = ["stopped" if done.finish_reason == "cancelled" else ""]
    tokens = done.usage.completion_tokens if done.usage else 0
    if done.usage:
        parts.append(f"{'about ' if done.usage.source == 'estimated' else ''}{tokens} tokens")
    if done.timings and done.timings.first_token_s is not None:
        parts.append(f"first after {done.timings.first_token_s:.2f} s")
        writing_s = done.timings.total_s - done.timings.first_token_s
        if tokens > 1 and writing_s > 0:
            parts.append(f"{(tokens - 1) / writing_s:.0f} tokens/s")
    parts.append(f"finish reason: {done.finish_reason}")
    return " · ".join(filter(None, parts))


def advice(problem: RelayProblem, url: str) -> str:
    """What went wrong, for someone at a terminal, and what to do about it."""
    match problem.code:
        case "unreachable":
            return f"no relay at {url}; start one with `sse-relay serve` or `sse-relay demo`"
        case "not_a_relay":
            return f"{problem.message} Is {url} the relay's address?"
        case "invalid_request" if problem.error.param == "model":
            return f"{problem.message} Name one with --model, or set RELAY_DEFAULT_MODEL where the relay runs."
    parts = [f"{problem.message.rstrip('.')} ({problem.code})."]
    if problem.partial:
        parts.append("The answer is not whole.")
    if problem.retryable:
        after = f" after {problem.retry_after_s:g} s" if problem.retry_after_s else ""
        parts.append(f"It may help to try again{after}.")
    return " ".join(parts)


def _remark(text: str, style: str) -> None:
    text = text.translate(CONTROLS)
    print(f"{style}{text}{PLAIN}" if _styled(Console(stderr=True)) else text, file=sys.stderr, flush=True)


def _styled(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal and not console.no_color
