"""What went wrong, as errors for people: failed connections, statuses of HTTP, pages in the place of files."""

from __future__ import annotations

import contextlib
import math
import re
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx

from vllm_mxext.backoff import retry_after_s
from vllm_mxext.errors import DownloadError, HubCause, HubError, TransferError
from vllm_mxext.redaction import redact

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524})
"""Statuses after which asking again may help; 520 to 524 are Cloudflare's for trouble behind it."""


@contextlib.contextmanager
def understanding(endpoint: str, variable: str) -> Iterator[None]:
    """Turns the failure to read an answer into an error that says whose answer it is.

    Args:
        endpoint: of the server.
        variable: that names it.

    Raises:
        DownloadError: the block stumbled over what the server sent.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise DownloadError(
            f"{httpx.URL(endpoint).host} answers otherwise than its protocol says; check {variable}, or whether "
            "there is a "
            "newer version of this program."
        ) from error


@dataclass(frozen=True, slots=True)
class Advice:
    """How a source's errors are worded.

    Attributes:
        what: is asked for, as the beginning of a sentence: `The model 'acme/tiny' of huggingface.co`.
        unauthorized: what to do if it is not allowed, as the end of a sentence.
        not_found: what to do if it is not there, likewise.
        explain: the source's own reading of an answer and its body; None if it has none.
    """

    what: str
    unauthorized: str
    not_found: str
    explain: Callable[[httpx.Response, bytes], HubError | None] = lambda _response, _body: None


def error_of(  # noqa: PLR0911 - a table of cases
    response: httpx.Response, body: bytes, advice: Advice, *, is_elsewhere: bool = False
) -> HubError:
    """Returns the error that an answer stands for.

    Args:
        response: with a status that is no success.
        body: it.
        advice: words.
        is_elsewhere: it comes from a host that the source redirected to.
    """
    status, host = response.status_code, response.url.host
    if is_elsewhere and status in (400, 401, 403):
        return TransferError(
            f"{host} refused the signed address of a file ({status}); try again; if it goes on, see whether a proxy or "
            "firewall keeps this machine from there."
        )
    if status in _PASSING:
        wish = "asks for fewer requests" if status == 429 else f"is in trouble (status {status})"
        wait_s = asked_wait_s(response)
        when = "some minutes" if wait_s is None or wait_s <= 60 else f"{math.ceil(wait_s / 60)} minutes"
        return TransferError(f"{host} {wish}; try again in {when}.", retry_after_s=wait_s)
    explained = advice.explain(response, body)
    if explained is not None:
        return explained
    if status in (401, 403):
        return DownloadError(
            f"{advice.what} may not be read ({status}): {advice.unauthorized}", cause=HubCause.UNAUTHORIZED
        )
    if status in (404, 410):
        return DownloadError(f"{advice.what} does not exist: {advice.not_found}", cause=HubCause.NOT_FOUND)
    if status == 407:
        return proxy_refusal()
    return DownloadError(
        f"{advice.what} cannot be had: {host} answered with status {status}, which this program has no answer to; "
        "check "
        "the address, and proxies on the way."
    )


def proxy_refusal() -> DownloadError:
    """Returns the error for a proxy that wants a password."""
    return DownloadError(
        "The proxy wants a user and password; put them into HTTPS_PROXY as http://USER:PASSWORD@HOST:PORT.",
        cause=HubCause.UNAUTHORIZED,
    )


def connection_error(error: httpx.HTTPError, url: httpx.URL) -> HubError:  # noqa: PLR0911 - a table of cases
    """Returns the error for a connection that failed."""
    host = url.host
    if _is_distrusted(error):
        return DownloadError(
            f"The certificate of {host} is not trusted; if a proxy of your organisation is in between, name the "
            "file with "
            "its certificates in SSL_CERT_FILE.",
            cause=HubCause.UNREACHABLE,
        )
    if isinstance(error, httpx.ProxyError):
        if "407" in str(error):
            return proxy_refusal()
        return TransferError(f"The proxy for {host} failed ({_reason(error)}); check HTTPS_PROXY and NO_PROXY.")
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
        return TransferError(
            f"{host} cannot be reached ({_reason(error)}); check the network, HTTPS_PROXY, or use --offline with "
            "what has "
            "been downloaded."
        )
    if isinstance(error, httpx.TimeoutException):
        return TransferError(f"{host} sent nothing for the time of --download-stall-timeout; try again.")
    if isinstance(error, (httpx.UnsupportedProtocol, httpx.InvalidURL)):
        return DownloadError(f"{redact(str(url))} is no address of http or https; correct it.")
    return TransferError(f"The connection to {host} broke ({_reason(error)}); try again.")


def is_page(response: httpx.Response, path: str) -> bool:
    """Tells whether an answer is a web page although a file was asked for."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return kind in ("text/html", "application/xhtml+xml") and not path.lower().endswith((".html", ".htm", ".xhtml"))


def page_error(response: httpx.Response, path: str) -> TransferError:
    """Returns the error for a web page in the place of a file."""
    return TransferError(
        f"{response.url.host} answered with a web page instead of '{path}'; a proxy or a log-in page may be in "
        "between: "
        "open the address in a browser, or check HTTPS_PROXY."
    )


def asked_wait_s(response: httpx.Response) -> float | None:
    """Returns the seconds after which to ask again, by `Retry-After` or the IETF draft's `RateLimit`."""
    seconds = retry_after_s(response.headers)
    if seconds is None and response.status_code == 429:
        match = re.search(r";\s*t=(\d+)", response.headers.get("RateLimit", ""))
        return float(match[1]) if match is not None else None
    return seconds


def _is_distrusted(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _reason(error: Exception) -> str:
    return redact(str(error)).strip().rstrip(".") or type(error).__name__
