"""Requests of sources: redirects followed by hand, so that credentials reach no host but their own."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from vllm_mxext.errors import DownloadError, HubCause, TransferError
from vllm_mxext.hub.network import Network
from vllm_mxext.hub.sources.answers import Advice, connection_error, error_of

_MAX_REDIRECTS = 10
_MAX_JSON_BYTES = 64 << 20
_REDIRECT_KEPT_S = 300.0
_EXPIRED = frozenset({400, 401, 403, 404, 410})


@dataclass(frozen=True, slots=True)
class Access:
    """Credentials, and the one host that sees them.

    Attributes:
        host: scheme, host and port of this URL.
        headers: that are sent there.
    """

    host: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def for_url(self, url: httpx.URL) -> Mapping[str, str]:
        """Returns the headers for a request: none for other hosts."""
        return self.headers if origin(url) == origin(httpx.URL(self.host)) else {}


NO_ACCESS = Access("https://localhost")
"""Nobody is asked with credentials."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer whose body has not been read.

    Attributes:
        response: the last one, after all redirects.
        is_elsewhere: it is of another host than was asked.
    """

    response: httpx.Response
    is_elsewhere: bool


def origin(url: httpx.URL) -> tuple[str, str, int]:
    """Returns scheme, host and port."""
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme, 0)


class Redirects:
    """Where addresses have led to on other hosts, so that the next range of a file needs one request instead of two.

    Hubs count requests, and sign addresses of their CDN for longer than these are kept.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[httpx.URL, float]] = {}

    def find(self, url: str) -> httpx.URL | None:
        """Returns where a URL has led to some minutes ago."""
        with self._lock:
            there, until = self._kept.get(url, (None, 0.0))
            return there if self._clock() < until else None

    def keep(self, url: str, there: httpx.URL) -> None:
        """Remembers it."""
        with self._lock:
            self._kept[url] = there, self._clock() + _REDIRECT_KEPT_S

    def forget(self, url: str) -> None:
        """Forgets one that does not work any more."""
        with self._lock:
            self._kept.pop(url, None)


def ask(
    network: Network,
    url: str,
    access: Access = NO_ACCESS,
    headers: Mapping[str, str] | None = None,
    redirects: Redirects | None = None,
) -> Reply:
    """Sends a GET and follows redirects; the caller closes the response, whatever its status is.

    Raises:
        TransferError: the connection failed.
        DownloadError: offline, or a redirect that is not followed.
    """
    first = _url(url)
    known = redirects.find(url) if redirects else None
    if redirects and known:
        reply = _follow(network, first, known, access, headers or {})
        if reply.response.status_code not in _EXPIRED:
            return reply
        reply.response.close()
        redirects.forget(url)
    reply = _follow(network, first, first, access, headers or {})
    if redirects and reply.is_elsewhere and reply.response.is_success:
        redirects.keep(url, reply.response.url)
    return reply


def _follow(network: Network, first: httpx.URL, here: httpx.URL, access: Access, headers: Mapping[str, str]) -> Reply:
    client, has_credentials = network.client(), bool(access.for_url(first))
    for _ in range(_MAX_REDIRECTS + 1):
        request = client.build_request("GET", here, headers={**headers, **access.for_url(here)})
        try:
            response = client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise connection_error(error, here) from error
        if not response.has_redirect_location:
            return Reply(response, origin(here) != origin(first))
        response.close()
        here = _next(here, response.headers["Location"], has_credentials=has_credentials)
    raise DownloadError(f"{first.host} redirects in a circle; check the address of the source.")


def ask_json(
    network: Network,
    url: str,
    advice: Advice,
    access: Access = NO_ACCESS,
    headers: Mapping[str, str] | None = None,
) -> tuple[Any, httpx.Headers]:
    """Returns the JSON at a URL and the answer's headers; asks once.

    Raises:
        TransferError: asking again may help.
        DownloadError: it will not.
    """
    reply = ask(network, url, access, {"Accept": "application/json", **(headers or {})})
    body = read_all(reply, advice)
    try:
        return json.loads(body), reply.response.headers
    except (ValueError, RecursionError) as error:
        raise TransferError(
            f"{reply.response.url.host} answered with something that is no JSON; a proxy or a log-in page may be in "
            "between: check HTTPS_PROXY and the address of the source."
        ) from error


def read_all(reply: Reply, advice: Advice) -> bytes:
    """Returns the body of a success.

    Raises:
        TransferError: the status or the connection is bad; asking again may help.
        DownloadError: it will not.
    """
    response, body = reply.response, bytearray()
    try:
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > _MAX_JSON_BYTES:
                raise DownloadError(
                    f"{response.url.host} sends more than {_MAX_JSON_BYTES} bytes for a list; check the address."
                )
    except httpx.HTTPError as error:
        raise connection_error(error, response.url) from error
    finally:
        response.close()
    if not response.is_success:
        raise error_of(response, bytes(body), advice, is_elsewhere=reply.is_elsewhere)
    return bytes(body)


def _url(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:
        raise DownloadError(f"'{text.partition('?')[0]}' is no address; correct it.") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise DownloadError(f"'{text.partition('?')[0]}' is no address of http or https; correct it.")
    return url


def _next(here: httpx.URL, location: str, *, has_credentials: bool) -> httpx.URL:
    try:
        there = here.join(location)
    except (httpx.InvalidURL, ValueError) as error:
        raise DownloadError(f"{here.host} redirects to something that is no address; check the source.") from error
    if there.scheme not in ("http", "https") or not there.host:
        raise DownloadError(f"{here.host} redirects to '{there.scheme}:', which is not followed; check the source.")
    if here.scheme == "https" and there.scheme == "http" and has_credentials:
        raise DownloadError(
            f"{here.host} redirects to {there.host} without encryption, which is not followed with credentials; "
            "correct "
            "the source's endpoint.",
            cause=HubCause.UNSAFE,
        )
    return there
