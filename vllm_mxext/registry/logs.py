"""Logs of servers: written with rotation by size, read from the end, and followed as they grow."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

MAX_BYTES = 10 * 2**20
"""Size at which a log is rotated."""

KEPT = 4
"""Rotated logs that are kept; `server.log.1` is the newest."""

NOTE = "--- "
"""Begins the lines that the keeper writes, not the server."""

_POLL_S = 0.2


class RotatingLog:
    """A log that takes about `(kept + 1) * max_bytes` at most; a line is never split between two files.

    Args:
        path: its path.
        max_bytes: size at which it is rotated.
        kept: rotated logs that are kept.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, kept: int = KEPT) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._kept = kept
        self._file = self._open()
        self._size = path.stat().st_size
        self._is_line_open = not last_bytes(path, 1).endswith(b"\n") if self._size else False

    def write(self, data: bytes) -> None:
        """Appends `data`; on a full disk it is lost, and the server goes on."""
        end = data.find(b"\n") + 1 if self._is_line_open else 0  # completes the line begun before
        is_cut = self._is_line_open and end == 0 and self._size < 2 * self._max_bytes
        if self._size + len(data) > self._max_bytes and self._size > 0 and not is_cut:
            self._append(data[:end])
            data = data[end:]
            self._rotate()
        self._append(data)

    def note(self, text: str) -> None:
        """Appends a line of the keeper's with the time, after ending a line that the server has begun."""
        begin = "\n" if self._is_line_open else ""
        self.write(f"{begin}{NOTE}{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n".encode())

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _append(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self._size += os.write(self._file, data) if data else 0
        self._is_line_open = not data.endswith(b"\n") if data else self._is_line_open

    def _rotate(self) -> None:
        with contextlib.suppress(OSError):
            for number in range(self._kept - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    _rotated(self._path, number).replace(_rotated(self._path, number + 1))
            self._path.replace(_rotated(self._path, 1))
            before, self._file = self._file, self._open()
            self._size = 0
            os.close(before)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _rotated(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def log_files(path: Path) -> list[Path]:
    """Returns a log and its rotated files, the newest first."""
    found = [path, *(_rotated(path, number) for number in range(1, KEPT + 1))]
    return [one for one in found if one.is_file()]


def tail(path: Path, count: int) -> list[str]:
    """Returns the last lines of a log, rotated files included."""
    lines: deque[str] = deque()
    for one in log_files(path):
        if len(lines) >= count:
            break
        with contextlib.suppress(FileNotFoundError):  # rotated meanwhile
            older = _lines(one.read_bytes())
            lines.extendleft(reversed(older[-(count - len(lines)) :]))
    return list(lines)


def _lines(data: bytes) -> list[str]:
    """Returns the lines, split at newlines only: `splitlines` also splits at other separators of Unicode."""
    lines = data.decode("utf-8", errors="replace").replace("\r\n", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def last_bytes(path: Path, count: int) -> bytes:
    """Returns the end of a file; nothing if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - count))
            return file.read(count)
    except OSError:
        return b""


def last_line(path: Path) -> str:
    """Returns the last non-empty line of a log, reading only its end."""
    lines = last_bytes(path, 4096).decode("utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def follow(
    path: Path, count: int, is_over: Callable[[], bool], *, sleep: Callable[[float], None] = time.sleep
) -> Iterator[str]:
    """Yields the last lines of a log and those that follow, across rotations, until its writer has ended.

    Args:
        path: its path.
        count: lines from the end to begin with.
        is_over: tells whether its writer has ended.
        sleep: waits.
    """
    begun = b""
    for data in _pieces(path, count, is_over, sleep):
        *whole, begun = (begun + data).split(b"\n")
        yield from (line.decode("utf-8", errors="replace") for line in whole)
    if begun:
        yield begun.decode("utf-8", errors="replace")


def _pieces(path: Path, count: int, is_over: Callable[[], bool], sleep: Callable[[float], None]) -> Iterator[bytes]:
    file = _open_to_read(path)
    try:
        if file is not None:
            yield _end_of(file.read(), path, os.fstat(file.fileno()).st_ino, count)
        while True:
            ends = is_over()  # asked before reading, so that the last lines are not missed
            if file is None:
                file = _open_to_read(path)
            if file is not None:
                while data := file.read(65536):
                    yield data
                if _is_replaced(path, file.fileno()):
                    file.close()
                    file = None
                    continue
            if ends:
                return
            sleep(_POLL_S)
    finally:
        if file is not None:
            file.close()


def _end_of(data: bytes, path: Path, number: int, count: int) -> bytes:
    """Returns the last lines of a log, whose newest file has been read already."""
    for older in log_files(path)[1:]:
        if data.count(b"\n") >= count:
            break
        with contextlib.suppress(FileNotFoundError):
            if older.stat().st_ino != number:  # else it is the file that has been read, rotated since
                data = older.read_bytes() + data
    lines = data.split(b"\n")
    is_open = lines[-1] != b""
    return b"\n".join(lines[len(lines) - count - (not is_open) :]) if count < len(lines) else data


def _open_to_read(path: Path) -> IO[bytes] | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


def _is_replaced(path: Path, descriptor: int) -> bool:
    try:
        return path.stat().st_ino != os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False  # in the middle of a rotation
