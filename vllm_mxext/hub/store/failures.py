"""What the operating system says about the store's files, as errors that say what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm_mxext.errors import HubCause, StoreError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


def store_error(folder: Path, error: OSError) -> StoreError:
    """Returns the error that says why a folder of models cannot be read or written."""
    where = error.filename if isinstance(error.filename, str) else str(folder)
    reason = error.strerror or str(error)
    if error.errno in _NO_SPACE:
        return StoreError(
            f"There is no space left for models in '{folder}' ({reason}); free some, for example with `mxext hub gc`, "
            "or name another folder with --download-dir.",
            cause=HubCause.NO_SPACE,
        )
    if error.errno in _NO_PERMISSION:
        remedy = "make it writable" if error.errno == errno.EROFS else "give this user the right to it"
        return StoreError(
            f"The folder of models '{folder}' cannot be used: '{where}': {reason}; {remedy}, or name another folder "
            "with --download-dir.",
            cause=HubCause.NO_PERMISSION,
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return StoreError(
            f"Too many files are open to use the folder of models '{folder}'; allow more, for example with `ulimit -n "
            "4096`, or use fewer --download-connections."
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return StoreError(
            f"'{folder}' is no folder of models: '{where}': {reason}; name another folder with --download-dir."
        )
    return StoreError(f"The folder of models '{folder}' cannot be used: '{where}': {reason}; check the disk.")


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Makes a `StoreError` of what the operating system raises inside."""
    try:
        yield
    except OSError as error:
        raise store_error(folder, error) from error
