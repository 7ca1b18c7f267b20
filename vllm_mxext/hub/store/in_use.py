"""Snapshots in use: a server keeps its files from `gc`, because it reads them again when its engine restarts."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from vllm_mxext.hub.store import layout


@contextlib.contextmanager
def using(folder: Path | None) -> Iterator[None]:
    """Keeps a snapshot from being collected while the block runs; nothing happens where there are no locks.

    Args:
        folder: of the snapshot; None = none is used.
    """
    with contextlib.ExitStack() as stack:
        if folder is not None:
            with contextlib.suppress(OSError):  # a store that cannot be locked cannot be collected in a hurry either
                file = stack.enter_context((folder / layout.SNAPSHOT).open("rb"))
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


def is_in_use(folder: Path) -> bool:
    """Whether some process uses a snapshot."""
    try:
        with (folder / layout.SNAPSHOT).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
