"""The Python client of a relay: start a generation, read it, stop it, and come back after a lost connection.

    with RelayClient("http://127.0.0.1:8000") as relay:
        with relay.stream("Hello", model="gpt-4o") as stream:
            for event in stream:
                print(event.content, end="", flush=True)

A loop that ends has read a whole answer, or one that was stopped. Anything else raises `RelayProblem`, after the
`error` event where there was one: a cut answer cannot be taken for a whole one. `AsyncRelayClient` is the same for
asyncio; `StreamingChat` and `AsyncStreamingChat` remember what was said.
"""

from app.client.async_client import AsyncAnswerStream, AsyncRelayClient
from app.client.chat import AsyncStreamingChat, StreamingChat
from app.client.conversation import Message
from app.client.events import Answer, ClientEvent, Timings, ToolCall, ToolCallPiece
from app.client.problems import ErrorObject, RelayProblem
from app.client.sync_client import AnswerStream, RelayClient
from app.events import Usage

__all__ = [
    "Answer",
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncRelayClient",
    "AsyncStreamingChat",
    "ClientEvent",
    "ErrorObject",
    "Message",
    "RelayClient",
    "RelayProblem",
    "StreamingChat",
    "Timings",
    "ToolCall",
    "ToolCallPiece",
    "Usage",
]
