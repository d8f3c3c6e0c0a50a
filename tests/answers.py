"""The answers that every client is tried with: asked for by name, they come from a scripted upstream."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from tests.upstream import Answer, Exchange, Step, chunk, close, delta, done, finish, head, usage


class Call(msgspec.Struct, frozen=True):
    """A tool call, with its arguments as upstream sends them: JSON text in pieces."""

    id: str
    name: str
    pieces: tuple[str, ...]

    @property
    def arguments(self) -> Any:
        return json.loads("".join(self.pieces))


class Expected(msgspec.Struct, frozen=True):
    """What a client must have at the end. `failure` is the code of an answer that breaks off in the middle."""

    texts: tuple[str, ...] = ()
    thoughts: tuple[str, ...] = ()
    calls: tuple[Call, ...] = ()
    failure: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def reasoning(self) -> str:
        return "".join(self.thoughts)

    def steps(self) -> Iterator[Step]:
        """One upstream answer: each text, thought and piece of arguments is a chunk of its own."""
        yield from (head(), delta(role="assistant", content=""))
        yield from (delta(reasoning_content=thought) for thought in self.thoughts)
        yield from map(chunk, self.texts)
        for index, call in enumerate(self.calls):
            function = {"name": call.name, "arguments": ""}
            yield delta(tool_calls=[{"index": index, "id": call.id, "type": "function", "function": function}])
            for piece in call.pieces:
                yield delta(tool_calls=[{"index": index, "function": {"arguments": piece}}])
        if self.failure:
            yield close()
        else:
            yield from (finish("tool_calls" if self.calls else "stop"), usage(3, 9), done())


CODE: Final = (
    """Here:\n\n```python\n\tif "a\\tb" != 'c\\\\d':\n\t\tprint(f"data: {x!r}\\r\\n")\n```\n""",
    "\ndata: [DONE]\n\n",
    "id: 7\r\n\u2028\u2029\u0085: x\r",
    "\n\n<b>&amp;</b>\t",
)

ANSWERS: Final = {
    "plain": Expected(("Hello", ", ", "world", ".")),
    "cjk": Expected(("你好", "世界", "。こんにちは、", "안녕하세요")),
    "emoji": Expected(("👋🏽 ", "👩‍👩‍👧‍👦", "🏳️‍🌈", " ok ", "𝒳é")),
    "code": Expected(CODE),
    "large": Expected(tuple(f"{n:05d} {'lorem ipsum ' * 24}\n" for n in range(1020))),
    "reasoning": Expected(("The answer is ", "42."), ("Let me think… ", "six times seven.")),
    "tools": Expected(
        ("I will look.",),
        calls=(
            Call("call_1", "get_weather", ('{"ci', 'ty":"Zürich"', ',"days":2}')),
            Call("call_2", "get_time", ('{"zone":', '"Asia/Tōkyō"}')),
        ),
    ),
    "broken": Expected(("Half an ", "answer"), failure="upstream_truncated"),
}
"""By the question that asks for them."""


def by_question() -> Answer:
    """The answer of a scripted upstream that reads the last message: `upstream.script(by_question())`."""

    async def step(exchange: Exchange) -> None:
        for each in ANSWERS[question(exchange.request.body["messages"])].steps():
            await each(exchange)

    return (step,)


def question(messages: Sequence[Any]) -> str:
    """The text of the last user message, whether it came as a string or in parts."""
    content = next(message["content"] for message in reversed(messages) if message["role"] == "user")
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
