"""`HttpRange`: bytes of a file by HTTP, held against what the answer announced and what the listing says."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType

import httpx

from vllm_mxext.errors import DownloadError, TransferError
from vllm_mxext.hub.network import Network
from vllm_mxext.hub.sources.answers import Advice, connection_error, error_of, is_page, page_error
from vllm_mxext.hub.sources.interface import RemoteFile
from vllm_mxext.hub.sources.requests import NO_ACCESS, Access, Redirects, Reply, ask, read_all

MIN_BYTES_PER_S = 256
"""A connection that is slower than this over the stall timeout is given up: a new one may be faster."""

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class HttpRange:
    """The body of an answer; see `Range`.

    Args:
        response: with status 200 or 206, not read yet.
        path: the file, for messages.
        start: offset of the first byte.
        length: bytes that must come; None if not announced.
        total_size: of the file.
        stall_s: seconds in which `MIN_BYTES_PER_S` must have come on average; 0 = no limit.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        response: httpx.Response,
        path: str,
        *,
        start: int,
        length: int | None,
        total_size: int | None,
        stall_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.start = start
        self.total_size = total_size
        self.validator = strong_validator(response.headers)
        self._response = response
        self._path = path
        self._length = length
        self._stall_s = stall_s
        self._clock = clock

    def chunks(self) -> Iterator[bytes]:
        """Yields the bytes as they arrive."""
        num_received = num_in_window = 0
        waited_s = 0.0  # only in here: a caller that is slow on purpose is no slow server
        blocks = self._response.iter_raw()
        while True:
            asked_at = self._clock()
            try:
                block = next(blocks, None)
            except httpx.HTTPError as error:
                raise connection_error(error, self._response.url) from error
            if block is None:
                break
            waited_s += self._clock() - asked_at
            num_received += len(block)
            num_in_window += len(block)
            if self._length is not None and num_received > self._length:
                raise self._wrong_length("more")
            yield block
            if self._stall_s and waited_s >= self._stall_s:
                if num_in_window < MIN_BYTES_PER_S * waited_s:
                    raise TransferError(
                        f"{self._response.url.host} sends '{self._path}' with less than {MIN_BYTES_PER_S} bytes per "
                        "second; try again, or raise --download-stall-timeout."
                    )
                num_in_window, waited_s = 0, 0.0
        if self._length is not None and num_received < self._length:
            raise self._wrong_length("fewer")

    def _wrong_length(self, how: str) -> TransferError:
        return TransferError(f"{self._response.url.host} sent {how} bytes of '{self._path}' than announced; try again.")

    def __enter__(self) -> HttpRange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._response.close()


def open_http_range(
    network: Network,
    url: str,
    file: RemoteFile,
    bounds: tuple[int, int | None],
    validator: str | None,
    advice: Advice,
    access: Access = NO_ACCESS,
    redirects: Redirects | None = None,
) -> HttpRange:
    """Asks for bytes of the file at `url`; see `Source.open_range()`.

    A start behind the end of the file, which then is not the one that was listed, gets the whole file; so does a server
    that ignores `If-Range`, as some stores of objects do, and has another file by now.

    Args:
        network: connections.
        url: where.
        file: as listed.
        bounds: offset of the first byte, and behind the last one (None = the rest).
        validator: of the first answer.
        advice: words for errors.
        access: credentials.
        redirects: those of earlier ranges.
    """
    asked = ask(network, url, access, _range_headers(bounds, validator), redirects)
    if asked.response.status_code == 416 or _is_part_of_another(asked.response, validator):
        asked.response.close()
        bounds = (0, None)
        asked = ask(network, url, access, None, redirects)
    try:
        return _checked(asked, file, bounds, advice, network.config.stall_s)
    except BaseException:
        asked.response.close()
        raise


def strong_validator(headers: Mapping[str, str]) -> str | None:
    """Returns the `ETag` if it is a strong one."""
    etag = headers.get("ETag", "").strip()
    return etag if len(etag) > 2 and etag.startswith('"') and etag.endswith('"') else None


def _is_part_of_another(response: httpx.Response, validator: str | None) -> bool:
    return validator is not None and response.status_code == 206 and strong_validator(response.headers) != validator


def _range_headers(bounds: tuple[int, int | None], validator: str | None) -> dict[str, str]:
    start, end = bounds
    if start == 0 and end is None:
        return {}
    headers = {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
    if validator is not None:
        headers["If-Range"] = validator
    return headers


def _checked(
    asked: Reply, file: RemoteFile, bounds: tuple[int, int | None], advice: Advice, stall_s: float
) -> HttpRange:
    response, path = asked.response, file.path
    if response.status_code not in (200, 206):
        read_all(asked, advice)  # raises, with what the body says
        raise error_of(response, b"", advice)
    if is_page(response, path):
        raise page_error(response, path)
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise DownloadError(
            f"{response.url.host} sends '{path}' compressed ({encoding}) although it was asked not to, so that "
            "parts of it "
            "cannot be had; switch compression off there or in the proxy."
        )
    length = _number(response.headers.get("Content-Length"))
    if response.status_code == 200:
        start, total_size = 0, length
    else:
        start, length, total_size = _content_range(response, path, bounds)
    if file.size is not None and total_size is not None and total_size != file.size:
        raise TransferError(
            f"'{path}' at {response.url.host} has {total_size} bytes, not the {file.size} that its listing says; it is "
            "being replaced or is damaged there: try again later."
        )
    return HttpRange(response, path, start=start, length=length, total_size=total_size, stall_s=stall_s)


def _content_range(response: httpx.Response, path: str, bounds: tuple[int, int | None]) -> tuple[int, int, int | None]:
    """Returns the first byte, the number of bytes, and the size of the file."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    first, last = (int(match[1]), int(match[2])) if match else (-1, -1)
    if match is None or first != bounds[0] or last < first or (bounds[1] is not None and last >= bounds[1]):
        raise TransferError(f"{response.url.host} sends other bytes of '{path}' than were asked for; try again.")
    return first, last - first + 1, _number(match[3])


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None
