"""OpenAI's SDK, told everything: what it would look up by itself in the environment belongs to one upstream alone.

It reads OPENAI_ORG_ID, OPENAI_PROJECT_ID and OPENAI_CUSTOM_HEADERS, and for Azure the credentials of AZURE_OPENAI_*.
The first three are of the account of OPENAI_API_KEY and go with the upstream of OPENAI_*; to others they would tell
whose customers we are, and perhaps a key.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import httpx2
import msgspec
from openai import AsyncAzureOpenAI, AsyncOpenAI
from openai._base_client import AsyncAPIClient
from openai._models import FinalRequestOptions
from openai._types import Omit

from app.upstream.egress import Egress
from app.upstream.http_client import HttpClient
from app.upstream.transport import Transport

Headers = dict[str, str | Omit]

DEPLOYMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
"""What a deployment of Azure may be called: it stands in the URL's path, which no client's words may change."""

URLS: Final = 256
"""So many are remembered: to put one together the SDK reads it three times, and an upstream has a few."""


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """An OpenAI-compatible service, and how it is asked.

    `headers` and `body` are put into each request and win over ours and over the client's. `environment`: the SDK's
    own variables are meant for it.
    """

    base_url: str
    api_key: str | None
    user_agent: str
    azure_api_version: str | None = None
    headers: Mapping[str, str] = {}
    body: dict[str, object] = {}
    asks_usage: bool = True
    egress: Egress = Egress()
    environment: bool = False

    def __repr__(self) -> str:
        return "<Service>"  # a traceback may quote it, and it holds keys


class _Told:
    """A client without headers of its own: all of them come with the request, put together once (`headers_of`)."""

    @property
    def default_headers(self) -> Headers:
        return {}


class _Client(_Told, AsyncOpenAI):
    """Its key stays the same. What the SDK does before each request to renew one costs a tenth of the request."""

    _prepare_options = AsyncAPIClient._prepare_options
    _prepare_request = AsyncAPIClient._prepare_request
    _send_request = AsyncAPIClient._send_request
    custom_auth = AsyncAPIClient.custom_auth

    _standing: tuple[object, httpx2.Headers] | None = None

    def _build_headers(self, options: FinalRequestOptions, *, retries_taken: int = 0) -> httpx2.Headers:
        """Those of one request and the next are the same, unless they carry a trace."""
        if self._standing is None or self._standing[0] is not options.headers:
            self._standing = options.headers, super()._build_headers(options, retries_taken=retries_taken)
            _ = self._standing[1].encoding  # is found out by decoding them all
        return self._standing[1].copy()


class _AzureClient(_Told, AsyncAzureOpenAI):
    pass


def client_of(service: Service) -> AsyncOpenAI:
    client = _made(service)
    client._prepare_url = lru_cache(URLS)(client._prepare_url)  # type: ignore[method-assign]
    return client


def _made(service: Service) -> AsyncOpenAI:
    http_client = HttpClient(transport=Transport(service.egress), follow_redirects=False, trust_env=False)
    key = service.api_key or "none"  # without one the SDK would look for one
    if service.azure_api_version is not None:
        return _AzureClient(
            azure_endpoint=service.base_url,
            api_version=service.azure_api_version,
            api_key=key,
            max_retries=0,
            http_client=http_client,
        )
    return _Client(base_url=service.base_url, api_key=key, max_retries=0, http_client=http_client)


def headers_of(service: Service, client: AsyncOpenAI) -> Headers:
    """The headers of each request but its key, which is the SDK's part; the operator's win."""
    account: Headers = {}
    if service.environment:
        named = {"OpenAI-Organization": client.organization, "OpenAI-Project": client.project}
        account |= {name: value for name, value in named.items() if value}
        account |= client._custom_headers
    ours: Headers = {
        "Accept": "text/event-stream",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "User-Agent": service.user_agent,
        "X-Stainless-Retry-Count": Omit(),
    }
    if not service.api_key:
        ours["Authorization" if service.azure_api_version is None else "api-key"] = Omit()
    theirs = {name.lower() for name in service.headers}
    return account | {name: value for name, value in ours.items() if name.lower() not in theirs} | dict(service.headers)
