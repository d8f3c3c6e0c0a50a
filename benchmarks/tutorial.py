"""The route everybody copies: a StreamingResponse over the SDK's typed chunks. The yardstick, with its faults kept.

It decodes each chunk into the SDK's models, encodes it anew and sends it alone; it has no limits, no way to resume and
no word for a stream that broke. `OPENAI_BASE_URL` and `OPENAI_API_KEY` are read by the SDK.
"""

import json
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from openai import AsyncOpenAI
from pydantic import BaseModel

app = FastAPI()
client = AsyncOpenAI()


class Chat(BaseModel):
    model: str
    message: str


@app.post("/chat/stream")
async def chat(chat: Chat) -> StreamingResponse:
    async def events() -> AsyncIterator[str]:
        stream = await client.chat.completions.create(
            model=chat.model, messages=[{"role": "user", "content": chat.message}], stream=True
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                yield f"data: {json.dumps({'content': chunk.choices[0].delta.content})}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")
