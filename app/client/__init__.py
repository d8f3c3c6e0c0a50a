"""The Python client of a relay: start a generation, read it, stop it, and come back after a lost connection.

    async with RelayClient("http://127.0.0.1:8000") as relay:
        async with relay.stream("Hello", model="gpt-4o") as stream:
            async for event in stream:
                print(event.content, end="", flush=True)

A loop that ends has read a whole answer, or one that was stopped. Anything else raises `RelayProblem`, after the
`error` event where there was one: a cut answer cannot be taken for a whole one.
"""

from app.client.conversation import Conversation, Message
from app.client.events import ClientEvent, ErrorObject, RelayProblem, Timings, ToolCallPiece
from app.client.stream import AnswerStream, RelayClient

__all__ = [
    "AnswerStream",
    "ClientEvent",
    "Conversation",
    "ErrorObject",
    "Message",
    "RelayClient",
    "RelayProblem",
    "Timings",
    "ToolCallPiece",
]
