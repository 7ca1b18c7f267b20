"""Opens the files of an adapter: regular ones inside of its folder only; every error is an `AdapterError`."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_mxext.errors import AdapterError
from vllm_mxext.lora.files import StoredDType, StoredTensor

MAX_HEADER_BYTES = 2 * 2**20
"""Most that is read of what describes an adapter: a header, a pickle without its tensors, a JSON file."""

_MAX_LISTED = 1000
_MAX_NAME_LENGTH = 200
_MAX_NUMBER = 1e9
_NUMPY_DTYPES: dict[StoredDType, str] = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}


def refusal(text: str) -> AdapterError:
    """The error that says why an adapter is not taken; it blames the field `lora_path`."""
    return AdapterError(text, param="lora_path")


@contextmanager
def parsing(path: Path) -> Iterator[None]:
    """Makes an `AdapterError` of whatever a parser stumbles over in a broken file."""
    try:
        yield
    except AdapterError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise refusal(f"{path} cannot be read ({reason}); check that the file is there and may be read.") from error
    except Exception as error:  # hostile bytes find every exception that a parser has
        detail = str(error)[:200] or type(error).__name__
        raise refusal(f"{path} is broken or cut off ({detail}); copy the adapter here again.") from error


class AdapterFolder:
    """The files of one adapter and what is used of them.

    A link may lead out of the folder only where stores keep their files: that of Hugging Face from
    `snapshots/<revision>/`, that of the MX Hub from `models/<name>/<revision>/` to `blobs/`.

    Args:
        path: folder, or the adapter's only file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._used: dict[str, str] = {}

    def open(self, name: str) -> Path:
        """Where a file of the folder really lies; it becomes part of the fingerprint.

        Raises:
            AdapterError: it is missing, no regular file, or a link out of the folder.
        """
        path = self._path / name if self._path.is_dir() else self._path
        with parsing(path):
            resolved = path.resolve(strict=True)
            status = resolved.stat()
        if not stat.S_ISREG(status.st_mode):
            raise refusal(f"{path} is not a regular file; an adapter is read from regular files only.")
        if self._path.is_dir() and not self._contains(resolved):
            raise refusal(f"{path} is a link out of the adapter's folder; copy the file into the folder.")
        self._used[name] = f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}"
        return resolved

    def names(self, ending: str) -> list[str]:
        """Names of its files with this ending, in order; the file's own name if it is one."""
        if not self._path.is_dir():
            return [self._path.name]
        return sorted(one.name for one in itertools.islice(self._path.iterdir(), _MAX_LISTED) if one.suffix == ending)

    def open_only(self, ending: str) -> Path:
        """Where the only file with this ending lies; it becomes part of the fingerprint.

        Raises:
            AdapterError: there is none, or more than one.
        """
        names = self.names(ending)
        if len(names) != 1:
            found = f"{len(names)} files ({', '.join(names[:5])})" if names else "no file"
            raise refusal(f"{self._path} holds {found} that end in {ending}; give the path of one.")
        return self.open(names[0])

    def fingerprint(self) -> str:
        """Hash of name, size, time of writing and inode of the files, as they were when they were opened."""
        return hashlib.sha256("\n".join(sorted(self._used.values())).encode(errors="surrogateescape")).hexdigest()

    def _contains(self, resolved: Path) -> bool:
        folder = self._path.resolve()
        if resolved.is_relative_to(folder):
            return True
        one_up, two_up = folder.parent, folder.parent.parent
        return (one_up.name == "snapshots" and resolved.is_relative_to(two_up / "blobs")) or (
            two_up.name == "models" and resolved.is_relative_to(two_up.parent / "blobs")
        )


def printable(text: str) -> str:
    """A text of an unknown file that can be part of a message."""
    return "".join(char if char.isprintable() else "?" for char in text[:_MAX_NAME_LENGTH])


def number(path: Path, name: str, value: object) -> float:
    """A number of a description.

    Raises:
        AdapterError: it is none, or absurd.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _MAX_NUMBER:
        raise refusal(f"{path}: {printable(name)} must be a number.")
    return float(value)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        AdapterError: it is too large or not a JSON object.
    """
    with parsing(path):
        if path.stat().st_size > MAX_HEADER_BYTES:
            raise refusal(f"{path} is larger than {MAX_HEADER_BYTES} bytes; it is not the description of an adapter.")
        content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise refusal(f"{path} does not hold a JSON object; copy the adapter here again.")
    return content


def stored_tensor(path: Path, offset: int, shape: tuple[int, ...], dtype: StoredDType) -> StoredTensor:
    """A tensor that lies in a file as it is, row after row.

    Raises:
        AdapterError: it would not lie within the file.
    """

    def read() -> npt.NDArray[Any]:
        values = np.empty(shape, dtype=_NUMPY_DTYPES[dtype])
        read_into(path, offset, values)
        return values

    tensor = StoredTensor(shape, dtype, read)
    with parsing(path):
        size = path.stat().st_size
    if offset < 0 or min(shape, default=1) < 0 or offset + tensor.num_bytes > size:
        raise refusal(f"{path} is broken or cut off (a tensor lies outside of it); copy the adapter here again.")
    return tensor


def read_into(path: Path, offset: int, values: npt.NDArray[Any]) -> None:
    """Fills an array with the bytes of a file.

    Raises:
        AdapterError: the file ends before, or cannot be read.
    """
    view = values.reshape(-1).view(np.uint8)
    with parsing(path), path.open("rb", buffering=0) as file:
        file.seek(offset)
        num_read = 0
        while num_read < view.nbytes:
            count = file.readinto(view[num_read:].data)
            if not count:
                raise refusal(f"{path} ends in the middle of a tensor; copy the adapter here again.")
            num_read += count


def derived(tensor: StoredTensor, shape: tuple[int, ...], change: Callable[[npt.NDArray[Any]], Any]) -> StoredTensor:
    """A tensor that is made from a stored one when it is read."""
    return StoredTensor(shape, tensor.dtype, lambda: np.ascontiguousarray(change(tensor.read()).reshape(shape)))


def rows_of(tensor: StoredTensor, start: int, stop: int) -> StoredTensor:
    """Some rows of a matrix."""
    return derived(tensor, (stop - start, *tensor.shape[1:]), lambda values: values[start:stop])


def open_part(path: Path, start: int = 0, size: int | None = None) -> BoundedFile:
    """Opens a part of a file, all of it by default."""
    return BoundedFile(path, start, path.stat().st_size - start if size is None else size)


def transposed(tensor: StoredTensor) -> StoredTensor:
    """A matrix with rows and columns exchanged."""
    return derived(tensor, tensor.shape[::-1], lambda values: values.T)


class BoundedFile:
    """A part of a file for parsers of headers and archives; refuses to read more than descriptions take.

    Args:
        path: the file.
        start: its first byte that is seen.
        size: bytes that are seen.
    """

    def __init__(self, path: Path, start: int, size: int) -> None:
        self._path, self._start, self._size = path, start, size
        self._position = 0
        self._budget = 2 * MAX_HEADER_BYTES

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to a place in the part."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if origin + offset < 0:
            raise ValueError("a place before the beginning")
        self._position = origin + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Reads up to `size` bytes."""
        left = max(0, self._size - self._position)
        size = left if size < 0 else min(size, left)
        self._budget -= size
        if self._budget < 0:
            raise refusal(f"{self._path} describes itself in more than {MAX_HEADER_BYTES} bytes; it is not an adapter.")
        with self._path.open("rb") as file:
            file.seek(self._start + self._position)
            content = file.read(size)
        self._position += len(content)
        return content
