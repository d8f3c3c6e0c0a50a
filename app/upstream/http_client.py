"""What stands between OpenAI's SDK and our transport: httpx2's client without what it does for a browser.

Redirects, cookies, auth flows, merged defaults and a log line cost a third of what the SDK takes for a request, and
none of them is wanted here.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import httpx2

URLS: Final = 256
"""So many are remembered: an upstream has two, one to ask at and one of its list."""

HEADS: Final = 64
"""So many lists of headers are remembered: without traces an upstream has one."""

_url: Final = lru_cache(URLS)(httpx2.URL)
_head: Final = lru_cache(HEADS)(httpx2.Headers)


def _is_plain(content: object, url: object, headers: object, timeout: object, others: Mapping[str, object]) -> bool:
    plain = isinstance(url, str) and isinstance(headers, list) and isinstance(timeout, httpx2.Timeout)
    return plain and isinstance(content, bytes | None) and not any(others.values())


class HttpClient(httpx2.AsyncClient):
    """Takes what the SDK gives: an absolute URL, all headers, a body of bytes. Anything else goes httpx2's own way."""

    def build_request(
        self,
        method: str,
        url: httpx2.URL | str,
        *,
        content: Any = None,
        headers: Any = None,
        timeout: Any = None,
        **others: Any,
    ) -> httpx2.Request:
        if not _is_plain(content, url, headers, timeout, others):
            return super().build_request(method, url, content=content, headers=headers, timeout=timeout, **others)
        # Given as a stream, a body brings no headers of its own: aiohttp has Host and Content-Length, too.
        stream, extensions = httpx2.ByteStream(content or b""), {"timeout": timeout.as_dict()}
        head = _head(tuple(headers))  # which the request copies
        request = httpx2.Request(method, _url(url), stream=stream, headers=head, extensions=extensions)
        request.headers.encoding = "latin-1"  # as they leave; it would be found out by decoding them all
        request.read()
        return request

    async def send(self, request: httpx2.Request, *, stream: bool = False, **_: Any) -> httpx2.Response:
        """As the transport answers; whoever asked for a stream closes it."""
        response = await self._transport.handle_async_request(request)
        response.request = request
        if not stream:
            await response.aread()
        return response
