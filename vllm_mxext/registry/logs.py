"""Logs of servers: written with rotation by size, and read from the end or as they grow."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

MAX_BYTES = 10 * 2**20
"""Size after which a log is put aside."""

KEPT = 4
"""Logs put aside that are kept: `server.log.1` is the youngest."""

_POLL_S = 0.2


class RotatingLog:
    """A log that never grows beyond `(kept + 1) * max_bytes`; lines stay whole.

    Args:
        path: of it.
        max_bytes: after which it is put aside.
        kept: logs put aside that are kept.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, kept: int = KEPT) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._kept = kept
        self._file = self._open()
        self._size = path.stat().st_size

    def write(self, data: bytes) -> None:
        """Appends; what a full disk cannot take is lost, and the server goes on."""
        if self._size + len(data) > self._max_bytes and self._size > 0:
            end = data.find(b"\n") + 1  # the rest of a line begun before
            self._append(data[:end])
            data = data[end:]
            self._rotate()
        self._append(data)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _append(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self._size += os.write(self._file, data) if data else 0

    def _rotate(self) -> None:
        with contextlib.suppress(OSError):
            for number in range(self._kept - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    _aside(self._path, number).replace(_aside(self._path, number + 1))
            self._path.replace(_aside(self._path, 1))
            os.close(self._file)
            self._file = self._open()
            self._size = 0

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _aside(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def log_files(path: Path) -> list[Path]:
    """Returns a log and those put aside, the youngest first."""
    found = [path, *(_aside(path, number) for number in range(1, KEPT + 1))]
    return [one for one in found if one.is_file()]


def tail(path: Path, count: int) -> list[str]:
    """Returns the last lines of a log, from what was put aside too."""
    lines: deque[str] = deque()
    for one in log_files(path):
        if len(lines) >= count:
            break
        older = one.read_text(encoding="utf-8", errors="replace").splitlines()
        lines.extendleft(reversed(older[-(count - len(lines)) :]))
    return list(lines)


def last_line(path: Path) -> str:
    """Returns the last line of a log that is not empty, reading only its end."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def follow(path: Path, is_over: Callable[[], bool], *, sleep: Callable[[float], None] = time.sleep) -> Iterator[str]:
    """Yields what is appended to a log from now on, through rotations, until nothing more comes.

    Args:
        path: of it.
        is_over: whether its writer has ended.
        sleep: waits.
    """
    position = path.stat().st_size if path.exists() else 0
    file = path.open("rb") if path.exists() else None
    try:
        if file is not None:
            file.seek(position)
        while True:
            ends = is_over()  # asked before reading, so that the last words are read
            if file is None and path.exists():
                file = path.open("rb")
            if file is not None:
                while data := file.read(65536):
                    yield data.decode("utf-8", errors="replace")
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


def _is_replaced(path: Path, descriptor: int) -> bool:
    try:
        return path.stat().st_ino != os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False  # between putting aside and making anew
