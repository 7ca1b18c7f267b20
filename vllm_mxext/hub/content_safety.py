"""What files of strangers are by their content, whatever they are called: no hidden pickle, no program, no false name.

Formats: pickle (`pickletools`), zip with pickles (PyTorch), .npy (numpy/lib/format.py), safetensors
(https://github.com/huggingface/safetensors#format), GGUF (ggml/docs/gguf.md), ELF, PE, Mach-O, WebAssembly.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import IO, Any

from vllm_mxext.errors import UnsafeFileError
from vllm_mxext.hub.safety import refused_kind

_HEAD_BYTES = 4096
_MAX_SAFETENSORS_HEADER = 100_000_000
"""The library refuses larger ones."""

_MAX_ARCHIVE_ENTRIES = 100_000
_PICKLE = re.compile(rb"\x80[\x02-\x05]|\(?c[A-Za-z_][\w.]*\n[A-Za-z_]\w*\n")
_PICKLE_NAME = re.compile(r"(\.pkl|\.pickle|\.pt|\.pth|(^|/)data\.pkl)$", re.IGNORECASE)
_NPY = re.compile(rb"\x93NUMPY[\x01-\x03]\x00")
_NPY_OBJECTS = re.compile(rb"""['"][|<>=]?O""")
_PROGRAM = re.compile(
    rb"\x7fELF|#!|\0asm|MZ.{0,62}\0|\xca\xfe\xba\xbe|\xfe\xed\xfa[\xce\xcf]|[\xce\xcf]\xfa\xed\xfe", re.DOTALL
)
_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK\x03\x04"


def check_content(file: Path, path: str, *, allows_pickle: bool, allows_code: bool) -> None:
    """Refuses a file whose content is not what its name says, or may run a program.

    Args:
        file: where it is.
        path: what it is called in the model.
        allows_pickle: files that run programs when they are loaded are taken.
        allows_code: programs are taken.

    Raises:
        UnsafeFileError: that is so.
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
        if path.lower().endswith(".safetensors"):
            _check_safetensors(stream, file.stat().st_size, path)
            return
        if path.lower().endswith(".gguf") and not head.startswith(b"GGUF"):
            raise _false_name(path, "GGUF")
        if not allows_pickle and _is_pickle(stream, head):
            raise refused_kind(path, "it is a pickle or holds some, and loading it can run a program", "allow_pickle")
    if not allows_code and _PROGRAM.match(head):
        raise refused_kind(path, "it is a program", "trust_remote_code")


def _is_pickle(stream: IO[bytes], head: bytes) -> bool:
    if head.startswith(_ZIP):
        return _archive_has_pickles(stream)
    return bool(_PICKLE.match(head)) or head.startswith(_HDF5) or _has_objects(head)


def _has_objects(head: bytes) -> bool:
    """Whether an array of numpy holds pickled objects; its header says so in its first bytes."""
    return _NPY.match(head) is not None and _NPY_OBJECTS.search(head.partition(b"\n")[0]) is not None


def _archive_has_pickles(stream: IO[bytes]) -> bool:
    """Whether a zip archive has pickles; one that cannot be read counts as such."""
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
            if len(entries) > _MAX_ARCHIVE_ENTRIES or any(_PICKLE_NAME.search(one.filename) for one in entries):
                return True
            return any(_entry_has_objects(archive, one) for one in entries if one.filename.endswith(".npy"))
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError):
        return True


def _entry_has_objects(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    with archive.open(entry) as stream:
        return _has_objects(stream.read(_HEAD_BYTES))


def _check_safetensors(stream: IO[bytes], size: int, path: str) -> None:
    """Refuses a file that the library would not take: header, offsets and size have to fit."""
    stream.seek(0)
    num_bytes = int.from_bytes(stream.read(8), "little")
    if size < 8 or num_bytes > min(_MAX_SAFETENSORS_HEADER, size - 8):
        raise _false_name(path, "safetensors")
    text = stream.read(num_bytes)
    try:
        header: dict[str, Any] = json.loads(text) if text.startswith(b"{") else {"": None}
        spans = sorted(_span(entry) for name, entry in header.items() if name != "__metadata__")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _false_name(path, "safetensors") from None
    end = 0
    for begin, next_end in spans:
        if begin != end or next_end < begin:
            raise _false_name(path, "safetensors")
        end = next_end
    if end != size - 8 - num_bytes:
        raise _false_name(path, "safetensors")


def _span(entry: Any) -> tuple[int, int]:
    begin, end = entry["data_offsets"]
    if type(begin) is not int or type(end) is not int or not isinstance(entry["dtype"], str):
        raise ValueError
    return begin, end


def _false_name(path: str, kind: str) -> UnsafeFileError:
    return UnsafeFileError(
        f"The file '{path}' is refused: it is not {kind}, as its name says, or it is damaged; take another source."
    )
