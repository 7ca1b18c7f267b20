"""`Network`: the HTTP connections of a download: proxies, certificates, timeouts, and none at all when offline."""

from __future__ import annotations

import ssl
import threading
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from vllm_mxext.config.hub import NetworkConfig
from vllm_mxext.errors import ConfigError, DownloadError, HubCause
from vllm_mxext.hub.proxies import Proxies
from vllm_mxext.redaction import guard_logs

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT_S = 15.0
"""Seconds until a host has taken a connection."""

_CA_FILES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


class Network:
    """Connections as the settings want them; safe to use from several threads.

    Args:
        config: the settings.
        transport: what requests go through instead of sockets (tests).
    """

    def __init__(self, config: NetworkConfig, transport: httpx.BaseTransport | None = None) -> None:
        self.config = config
        self._transport = transport
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._tls: ssl.SSLContext | None = None
        self._proxies: Proxies | None = None

    def client(self) -> httpx.Client:
        """Returns the client, which follows no redirects and knows no cookies or tokens: those are the sources' task.

        Raises:
            ConfigError: proxies or certificates in the environment are wrong.
        """
        with self._lock:
            if self._client is None:
                self._client = self._make_client()
            return self._client

    def refuse_if_offline(self, what: str) -> None:
        """Raises if no connection may be made; for protocols that do not go through `client()`.

        Raises:
            DownloadError: offline.
        """
        if self.config.is_offline:
            raise offline_error(what)

    def tls(self) -> ssl.SSLContext:
        """Returns the certificates that are trusted.

        Raises:
            ConfigError: a variable names a file that cannot be used.
        """
        if self._tls is None:
            self._tls = _tls_context(self.config)
        return self._tls

    def proxy(self, scheme: str, host: str, port: int | None) -> str | None:
        """Returns the URL of the proxy for a host; None = a direct connection.

        Raises:
            ConfigError: a proxy in the environment is wrong.
        """
        if self._proxies is None:
            self._proxies = Proxies(self.config.environ)
        return self._proxies.find(scheme, host, port)

    def close(self) -> None:
        """Closes all connections."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make_client(self) -> httpx.Client:
        import http.cookiejar  # noqa: PLC0415 - only downloads need it

        import httpx  # noqa: PLC0415 - slow to import, and only downloads need it

        from vllm_mxext.hub import transports  # noqa: PLC0415 - imports httpx

        guard_logs()
        stall_s = self.config.stall_s or None
        transport = self._transport
        if self.config.is_offline:
            transport = transports.Offline(offline_error)
        elif transport is None:
            transport = transports.ByProxy(self.proxy, self.tls, self.config.num_connections)
        no_cookies = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        return httpx.Client(
            transport=transport,
            timeout=httpx.Timeout(stall_s, connect=CONNECT_TIMEOUT_S, pool=None),
            headers={"User-Agent": "vllm_mxext", "Accept": "*/*", "Accept-Encoding": "identity"},
            cookies=no_cookies,
            follow_redirects=False,
            trust_env=False,
        )


def offline_error(what: str) -> DownloadError:
    """Returns the error for a connection that was not made."""
    return DownloadError(
        f"{what} is not on this machine and --offline (MIM_OFFLINE) forbids connections; download it first with "
        "`mxext hub pull` where there is a network, or leave --offline out.",
        cause=HubCause.OFFLINE,
    )


def _tls_context(config: NetworkConfig) -> ssl.SSLContext:
    for variable in _CA_FILES:
        path = config.environ.get(variable)
        if path:
            try:
                if Path(path).is_dir():
                    return ssl.create_default_context(capath=path)
                return ssl.create_default_context(cafile=path)
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(
                    f"{variable} names '{path}', which is no readable file of certificates; correct it or unset it."
                ) from error
    folder = config.environ.get("SSL_CERT_DIR")
    if folder:
        return ssl.create_default_context(capath=folder)
    return _usual_certificates()


@cache
def _usual_certificates() -> ssl.SSLContext:
    """Returns the certificates that come with Python's packages; reading them takes longer than a small request."""
    import httpx  # noqa: PLC0415 - slow to import, and only downloads need it

    return httpx.create_ssl_context(trust_env=False)
