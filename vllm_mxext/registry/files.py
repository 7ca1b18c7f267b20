"""Files that several commands use at the same time: replaced atomically, and locked while they change."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_mxext.registry.errors import RegistryError
from vllm_mxext.registry.folders import make_private

_POLL_S = 0.05


def write_json(path: Path, content: Any) -> None:
    """Replaces a file atomically: a reader, also after a power cut, sees either the old content or the new one.

    Raises:
        RegistryError: it cannot be written; the old one is unchanged.
    """
    text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
    target = path.resolve()  # a link stays a link
    if target.exists() and not target.is_file():
        raise RegistryError(f"'{path}' exists and is not a file, so nothing was written; name another one.")
    try:
        make_private(target.parent)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise RegistryError(
            f"'{path}' cannot be written ({error.strerror}); nothing was changed. Check the disk space and the "
            "permissions of its folder."
        ) from None


@contextlib.contextmanager
def locked(path: Path, *, timeout_s: float = 60.0) -> Iterator[None]:
    """Holds a lock against other processes; the system releases it if this process dies.

    Raises:
        RegistryError: another command holds it for longer than `timeout_s`, or its file cannot be created.
    """
    try:
        make_private(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise RegistryError(
            f"The lock '{path}' cannot be created ({error.strerror}); check its folder's permissions."
        ) from None
    try:
        _acquire(descriptor, path, time.monotonic() + timeout_s)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: Path, deadline: float) -> None:
    while not _try(descriptor):
        if time.monotonic() >= deadline:
            raise RegistryError(
                f"Another command is still working on this (lock '{path}'); try again when it has ended."
            )
        time.sleep(_POLL_S)


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise RegistryError(
            f"The file system has no locks ({error.strerror}); set XDG_STATE_HOME to a folder on a local disk."
        ) from None
    return True
