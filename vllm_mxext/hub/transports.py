"""Transports for `Network`: one that chooses a proxy by host, and one that connects to nothing."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable

import httpx

from vllm_mxext.errors import DownloadError, MissingDependencyError


class Offline(httpx.BaseTransport):
    """Raises for every request, before a name is looked up.

    Args:
        error: what was asked for -> the error.
    """

    def __init__(self, error: Callable[[str], DownloadError]) -> None:
        self._error = error

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Refuses."""
        raise self._error(f"What {request.url.host} has")


class ByProxy(httpx.BaseTransport):
    """Sends requests directly or through the proxy that is theirs.

    Args:
        find: scheme, host and port -> the proxy's URL or None.
        tls: the certificates that are trusted; asked for at the first connection.
        num_connections: kept open when idle.
    """

    def __init__(
        self,
        find: Callable[[str, str, int | None], str | None],
        tls: Callable[[], ssl.SSLContext],
        num_connections: int,
    ) -> None:
        self._find = find
        self._tls = tls
        self._limits = httpx.Limits(max_connections=None, max_keepalive_connections=num_connections)
        self._lock = threading.Lock()
        self._transports: dict[str | None, httpx.HTTPTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Sends it."""
        url = request.url
        return self._transport(self._find(url.scheme, url.host, url.port)).handle_request(request)

    def close(self) -> None:
        """Closes the connections."""
        with self._lock:
            for transport in self._transports.values():
                transport.close()
            self._transports.clear()

    def _transport(self, proxy: str | None) -> httpx.HTTPTransport:
        with self._lock:
            if proxy not in self._transports:
                try:
                    made = httpx.HTTPTransport(verify=self._tls(), proxy=proxy, limits=self._limits, trust_env=False)
                except ImportError as error:
                    raise MissingDependencyError(
                        "A SOCKS proxy needs a further package: pip install 'httpx[socks]'."
                    ) from error
                self._transports[proxy] = made
            return self._transports[proxy]
