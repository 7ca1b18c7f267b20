"""Checks of the folder of models: who may use it, whether there is space, and whether its locks work."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from vllm_mxext.config.memory_plan import format_bytes
from vllm_mxext.errors import StoreError
from vllm_mxext.findings import Finding, ok, problem, warning
from vllm_mxext.hub.store import layout, locks

Access = Callable[[Path, int], bool]
"""Whether this user may do something with a file: `os.access`."""

ELSEWHERE = "or name another folder with --download-dir"
FULL_BYTES = 1 << 30
"""Less is a full disk, whatever is to be stored."""

STALE_S = 24 * 3600.0
_PARTIAL = "partial"
_MAX_FILES = 20_000
_MAX_NAMED = 3


def check_access(folder: Path, *, must_write: bool, access: Access = os.access) -> list[Finding]:
    """Checks whether this user may read and change the folder, all that leads to it and what is in it.

    Args:
        folder: the store; need not be there.
        must_write: something has to be stored; otherwise reading is enough.
        access: asks the operating system.
    """
    subject = "permissions"
    blocked = next((parent for parent in reversed(folder.parents) if _is_blocked(parent, access)), None)
    if blocked is not None:
        return [problem(subject, f"'{blocked}' on the way to '{folder}' {_why_blocked(blocked)}.", _right_to(blocked))]
    if not os.path.lexists(folder):
        return [_check_missing(folder, access)]
    if not folder.is_dir():
        return [problem(subject, f"'{folder}' is no folder.", f"Move it away, {ELSEWHERE}.")]
    if not access(folder, os.R_OK | os.X_OK):
        return [problem(subject, f"The folder of models '{folder}' cannot be read.", _right_to(folder))]
    try:
        layout.check(folder)
    except StoreError as error:
        return [problem(subject, str(error), "Name another folder with --download-dir.")]
    return [*_check_inside(folder, must_write, access), *_check_strangers(folder)]


def _is_blocked(parent: Path, access: Access) -> bool:
    return parent.exists() and not (parent.is_dir() and access(parent, os.X_OK))


def _why_blocked(parent: Path) -> str:
    return "may not be entered" if parent.is_dir() else "is a file, not a folder"


def _right_to(path: Path) -> str:
    return f"Give user {os.getuid()} the right to '{path}' (chown or chmod), {ELSEWHERE}."


def _check_missing(folder: Path, access: Access) -> Finding:
    nearest = next(parent for parent in folder.parents if parent.exists())
    if access(nearest, os.W_OK | os.X_OK):
        return ok("permissions", f"The folder of models '{folder}' will be made by the first download.")
    text = f"The folder of models '{folder}' cannot be made, because nothing may be written in '{nearest}'."
    return problem("permissions", text, _right_to(nearest))


def _check_inside(folder: Path, must_write: bool, access: Access) -> Iterator[Finding]:
    unreadable, unwritable, count = [], [], 0
    if not access(folder, os.W_OK | os.X_OK):
        unwritable.append(folder)
    for path in _inside(folder):
        is_folder = path.is_dir() and not path.is_symlink()
        if not access(path, os.R_OK | (os.X_OK if is_folder else 0)):
            unreadable.append(path)
        elif is_folder and path.name in (layout.MODELS, _PARTIAL, "blobs", "pins", locks.FOLDER):
            unwritable += [] if access(path, os.W_OK) else [path]
        count += 1
    if unreadable:
        text = f"{_named(unreadable)} in the folder of models cannot be read, probably because another user made them."
        yield problem("permissions", text, _right_to(folder))
    if unwritable:
        text = f"Nothing can be stored in {_named(unwritable)}."
        make = problem if must_write else warning
        yield make("permissions", text, _right_to(unwritable[0]))
    if not (unreadable or unwritable):
        yield ok("permissions", f"The folder of models '{folder}' can be read and written ({count} entries).")


def _inside(folder: Path) -> Iterator[Path]:
    """Yields what is in the folder, up to a number that takes no time to look at."""
    count = 0
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            count += 1
            if count > _MAX_FILES:
                return
            path = Path(parent, name)
            if path.exists():  # links that lead nowhere are damage, not a matter of rights
                yield path


def _named(paths: list[Path]) -> str:
    more = len(paths) - _MAX_NAMED
    return ", ".join(f"'{path}'" for path in paths[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _check_strangers(folder: Path) -> Iterator[Finding]:
    if folder.stat().st_mode & stat.S_IWOTH:
        text = f"Every user of this machine may replace models in '{folder}'."
        yield warning("permissions", text, f"Take that right away: chmod o-w '{folder}'.")


def check_space(folder: Path, free_bytes: int, needed_bytes: int = 0, needed_for: str = "") -> Finding:
    """Checks whether the disk has space.

    Args:
        folder: the store, for the text.
        free_bytes: on its disk.
        needed_bytes: of what is to be stored.
        needed_for: what that is.
    """
    remedy = f"Free some, for example with `mxext hub gc`, {ELSEWHERE}."
    free = format_bytes(free_bytes)
    if needed_bytes > free_bytes:
        text = f"{needed_for} needs {format_bytes(needed_bytes)} and the disk of '{folder}' has {free}."
        return problem("disk", text, remedy)
    if free_bytes < FULL_BYTES:
        return problem("disk", f"The disk of '{folder}' is nearly full: {free} are free.", remedy)
    needed = f", {needed_for} needs {format_bytes(needed_bytes)}" if needed_bytes else ""
    return ok("disk", f"{free} are free for models{needed}.")


def check_locks(folder: Path) -> Finding:
    """Checks whether processes can keep each other out; only for a store that can be written."""
    try:
        with locks.holding(folder, "doctor", purpose="doctor", timeout_s=0) as lock:
            works = lock.works
    except StoreError as error:
        return problem("locks", str(error), _right_to(folder))
    if works:
        return ok("locks", "Locks work.")
    return warning(
        "locks",
        f"The file system of '{folder}' has no working locks; downloads stay safe, and gc keeps what is younger than a "
        "day.",
        f"Mount it with locks (NFS: without `nolock`), {ELSEWHERE}.",
    )


def check_partial(folder: Path, now_s: float | None = None) -> Finding | None:
    """Looks for downloads that nobody has gone on with for a day.

    Args:
        folder: the store.
        now_s: Unix time.
    """
    now_s = time.time() if now_s is None else now_s
    files = [path for path in (folder / _PARTIAL).rglob("*") if path.is_file()]
    stale = [file.stat() for file in files if now_s - file.stat().st_mtime > STALE_S]
    if not stale:
        return None
    size = format_bytes(sum(entry.st_blocks * 512 for entry in stale))
    text = f"{size} of downloads have been left unfinished for more than a day."
    return warning("partial files", text, "Pull the model again to finish them, or remove them with `mxext hub gc`.")
