"""Parses server-sent events by the HTML standard (section 9.2.6) from bytes that may be split anywhere.

The fields for reconnecting (`id`, `retry`) are ignored: a model's answer cannot be resumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MAX_EVENT_BYTES = 16 * 2**20
"""Largest event: enough for the log probabilities of a long answer in one piece."""

_BOM = b"\xef\xbb\xbf"


class MalformedEventError(ValueError):
    """An event is larger than the limit."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Attributes:
        data: its lines, joined by newlines.
        name: of the field `event`; empty if there is none.
    """

    data: str
    name: str = ""


class EventReader:
    """Turns bytes into events; lines end with LF, CR or CRLF, comments are dropped, an unfinished event is none.

    Args:
        max_bytes: of one event.
    """

    def __init__(self, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._line = bytearray()
        self._data: list[str] = []
        self._name = ""
        self._num_bytes = 0
        self._skips_lf = False
        self._is_at_start = True

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yields the events that `chunk` completes.

        Raises:
            MalformedEventError: an event is too large.
        """
        if self._skips_lf and chunk:
            self._skips_lf = False
            if chunk.startswith(b"\n"):
                chunk = chunk[1:]
        self._skips_lf = self._skips_lf or chunk.endswith(b"\r")
        *lines, rest = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for end in lines:
            self._line += end
            event = self._end_line()
            if event is not None:
                yield event
        self._line += rest
        self._check(len(self._line))

    def _end_line(self) -> Event | None:
        line = bytes(self._line)
        self._line.clear()
        if self._is_at_start:
            line = line.removeprefix(_BOM)
            self._is_at_start = False
        if not line:
            return self._dispatch()
        if line.startswith(b":"):
            return None
        name, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode("utf-8", "replace")
        if name == b"data":
            self._num_bytes += len(value) + 1
            self._check(0)
            self._data.append(text)
        elif name == b"event":
            self._name = text
        return None

    def _dispatch(self) -> Event | None:
        data, name = self._data, self._name
        self._data, self._name, self._num_bytes = [], "", 0
        return Event("\n".join(data), name) if data else None

    def _check(self, num_pending: int) -> None:
        if self._num_bytes + num_pending > self._max_bytes:
            raise MalformedEventError(f"an event is larger than {self._max_bytes} bytes")
