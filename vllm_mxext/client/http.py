"""One attempt over HTTP: `Wire` sends a call to one endpoint and returns its answer or its stream, or raises.

Uses `httpx`, as the hub does: its successor `httpx2` needs Python 3.11, but this project supports 3.10, and one HTTP
library per program is enough. The number of connections is not limited here, because the client's limiter does that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.request import getproxies

import httpx

from vllm_mxext.client.call import Call
from vllm_mxext.client.clock import Clock
from vllm_mxext.client.connections import Connections
from vllm_mxext.client.event_stream import EventStream
from vllm_mxext.client.exchange import MAX_ERROR_BYTES, Exchange, Limits, json_or_text, parsed, shown
from vllm_mxext.client.outcome import protocol_failed, raise_inner_error, request_id
from vllm_mxext.errors import ConfigError

MAX_BODY_BYTES = 512 * 2**20
"""Of an answer that is not streamed; embeddings of a large batch have some hundred megabytes."""
KEEP_ALIVE_S = 4.0
"""An idle connection is kept for less than uvicorn's five seconds, so that it is not closed under a request."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A good answer.

    Attributes:
        status: of HTTP.
        body: parsed JSON, or text.
        headers: lower-case names.
        request_id: the server's name for it.
    """

    status: int
    body: Any
    headers: Mapping[str, str]
    request_id: str


class Wire:
    """The connections to one endpoint.

    Args:
        url: of the server, with or without `/v1`.
        api_key: presented as a bearer; empty = none.
        headers: sent with every request.
        clock: time.
        transport: in the place of the network, for tests.

    Attributes:
        url: of the server, as it may be shown.

    Raises:
        ConfigError: address or key cannot be used.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        headers: Mapping[str, str],
        clock: Clock,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        base, auth = check_address(url, api_key)
        self._base = base
        self.url = shown(base)
        self._clock = clock
        authorization = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            self._client = httpx.AsyncClient(
                headers={"User-Agent": "vllm_mxext", **authorization, **headers},
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=KEEP_ALIVE_S),
                auth=None if api_key else auth,
                transport=transport or _connections(base),
                verify=not base.startswith("http://") or _has_proxy(),
            )
        except (ImportError, OSError, TypeError, ValueError) as error:
            raise ConfigError(
                f"Connections to {self.url} cannot be set up ({str(error).rstrip('.')}); look at the client's headers, "
                "and at the variables HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE."
            ) from error

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def fetch(self, call: Call, content: bytes | None, limits: Limits) -> Reply:
        """Returns the whole answer.

        Raises:
            AttemptFailedError: it did not come, or is none.
        """
        exchange = Exchange(self._client, (self._base, self.url), call, content, limits, self._clock)
        try:
            response = await exchange.begin(MAX_BODY_BYTES)
            await exchange.check_status(response)
            data = await exchange.read(response, MAX_BODY_BYTES)
        finally:
            await exchange.close()
        body = _parse(self.url, response, data, may_be_text=call.may_be_text)
        raise_inner_error(self.url, body, response.headers)
        return Reply(response.status_code, body, response.headers, request_id(response.headers, body))

    async def stream(self, call: Call, content: bytes | None, limits: Limits) -> EventStream:
        """Returns the events of an answer that has begun.

        Raises:
            AttemptFailedError: it did not begin, or is none.
        """
        exchange = Exchange(self._client, (self._base, self.url), call, content, limits, self._clock)
        try:
            response = await exchange.begin()
            await exchange.check_status(response)
            await self._check_stream(exchange, response)
        except BaseException:
            await exchange.close()
            raise
        return EventStream(self.url, exchange, response)

    async def _check_stream(self, exchange: Exchange, response: httpx.Response) -> None:
        kind = _content_type(response)
        if kind == "text/event-stream":
            return
        if kind.endswith("json"):
            data = await exchange.read(response, MAX_ERROR_BYTES, cut=True)
            raise_inner_error(self.url, json_or_text(data), response.headers)
        raise protocol_failed(
            self.url,
            f"answered with '{kind or 'no content type'}' where a stream of events was asked for",
            status=response.status_code,
            request_id=request_id(response.headers),
        )


def check_address(url: str, api_key: str) -> tuple[str, tuple[str, str] | None]:
    """Returns an address without `/v1`, and the name and password in it, which httpx would write into its log.

    Raises:
        ConfigError: address or key cannot be used.
    """
    if not (api_key.isascii() and api_key.isprintable()):
        raise ConfigError("The API key has characters that no key has, such as an end of line; copy it again.")
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL:
        address = httpx.URL("")
    is_port = address.port is None or 0 < address.port < 2**16
    if address.scheme not in ("http", "https") or not address.host or address.query or not is_port:
        raise ConfigError(f"The server's address must be one such as http://127.0.0.1:8000, got '{shown(url)}'.")
    auth = (address.username, address.password) if address.userinfo else None
    return shown(url).removesuffix("/v1"), auth


def _connections(url: str) -> Connections | None:
    """Returns connections of our own, None where httpx must look for a way through proxies.

    Certificates are read where they are needed only: that takes some ten milliseconds.
    """
    if _has_proxy():
        return None
    return Connections(KEEP_ALIVE_S, None if url.startswith("http://") else httpx.create_ssl_context())


def _has_proxy() -> bool:
    return not getproxies().keys().isdisjoint(("http", "https", "all"))


def _parse(url: str, response: httpx.Response, data: bytes, *, may_be_text: bool) -> Any:
    kind = _content_type(response)
    is_text = kind.startswith("text/") and kind != "text/html"
    if not data or (may_be_text and is_text):
        return data.decode("utf-8", "replace")
    if not kind.endswith("json") and kind:
        raise protocol_failed(
            url,
            f"answered with '{kind}' where JSON was asked for",
            status=response.status_code,
            request_id=request_id(response.headers),
        )
    try:
        return parsed(data)
    except ValueError as error:
        if may_be_text:  # vLLM calls the text of its answers about adapters JSON
            return data.decode("utf-8", "replace")
        raise protocol_failed(
            url,
            "answered with JSON that is broken",
            status=response.status_code,
            request_id=request_id(response.headers),
        ) from error


def _content_type(response: httpx.Response) -> str:
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()
