"""Reads what an issuer publishes, over HTTP."""

import asyncio
from typing import Final

import httpx2

from app import __version__
from app.door.jwks import Unreadable

FETCH_SECONDS: Final = 5.0
MAX_DOCUMENT_BYTES: Final = 256 * 1024
"""A hundred keys of 4096 bits are half of it."""

OK: Final = 200
_HEADERS: Final = {
    "accept": "application/json",
    "accept-encoding": "identity",
    "user-agent": f"sse-relay/{__version__}",
}


class Fetcher:
    """One URL. Its client is made when it is first needed, and follows no redirect: the operator chose the address."""

    def __init__(self, url: str, proxy: str | None) -> None:
        self._url: Final = url
        self._proxy: Final = proxy
        self._client: httpx2.AsyncClient | None = None

    async def fetch(self) -> bytes:
        """What is published there. Raises `Unreadable`."""
        if self._client is None:
            self._client = httpx2.AsyncClient(
                proxy=self._proxy, trust_env=False, follow_redirects=False, timeout=FETCH_SECONDS
            )
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                return await self._read(self._client)
        except TimeoutError:
            raise Unreadable(f"no answer within {FETCH_SECONDS:g} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise Unreadable(type(error).__name__) from None

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def _read(self, client: httpx2.AsyncClient) -> bytes:
        async with client.stream("GET", self._url, headers=_HEADERS) as response:
            if response.status_code != OK:
                raise Unreadable(f"status {response.status_code}")
            document = b""
            async for piece in response.aiter_raw():  # as it came: nothing is inflated
                document += piece
                if len(document) > MAX_DOCUMENT_BYTES:
                    raise Unreadable(f"more than {MAX_DOCUMENT_BYTES} bytes")
            return document
