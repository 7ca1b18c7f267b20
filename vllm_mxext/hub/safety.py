"""What files of strangers may be called and may be: nothing that leaves its folder, nothing that runs code unasked."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from vllm_mxext.errors import UnsafeFileError

MAX_FILES = 20_000
"""Files of one model."""

_MAX_PATH_LENGTH = 512
_MAX_NAME_BYTES = 200
_WINDOWS_NAME = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:")
_UNSEEN = ("Cc", "Cs", "Zl", "Zp")
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
"""Characters that make a name look like another one."""

_PICKLES = re.compile(
    r"\.(bin|pt|pth|pt2|ckpt|pkl|pickle|pck|joblib|dill|mar|nemo|distcp|h5|hdf5|keras)", re.IGNORECASE
)
"""Ends of files that are pickles or hold some, and of those of Keras, which hold programs too."""

_CODE = re.compile(
    r"\.(py|pyc|pyo|pyd|pyw|pyi|pyx|pyz|ipynb|whl|egg|so|dll|dylib|exe|o|a|elf|com|scr|msi|deb|rpm|apk|appimage|desktop|"
    r"sh|bash|zsh|fish|bat|cmd|ps1|vbs|js|mjs|cjs|rb|pl|lua|jar|class|wasm|cubin|ptx)",
    re.IGNORECASE,
)
"""Ends of files that are programs, or become some when somebody opens them."""


def check_path(path: str) -> PurePosixPath:
    """Returns a path inside a model as such.

    Raises:
        UnsafeFileError: it is absolute, has `..`, a backslash, a drive, characters that cannot be seen, or a name that
            some system keeps for itself, or is too long.
    """
    reason = _path_fault(path)
    if reason is not None:
        raise UnsafeFileError(f"The file {_shown(path)} is refused: {reason}; leave it out or take another source.")
    return PurePosixPath(path)


def check_paths(paths: Iterable[str], *, ignores_case: bool) -> None:
    """Refuses paths that are unsafe by themselves or cannot be beside each other.

    Args:
        paths: of one model.
        ignores_case: `A` and `a` would be the same file.

    Raises:
        UnsafeFileError: that is so.
    """
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for number, path in enumerate(paths):
        if number >= MAX_FILES:
            raise UnsafeFileError(f"The model has more than {MAX_FILES} files; name those that are needed (`include`).")
        key = _key(str(check_path(path)), ignores_case)
        if key in seen or key in folders:
            raise _clash(path, seen.get(key) or folders[key])
        seen[key] = path
        parts = key.split("/")
        for parent in ("/".join(parts[:count]) for count in range(1, len(parts))):
            if parent in seen:
                raise _clash(path, seen[parent])
            folders.setdefault(parent, path)


def check_file_kind(path: str, *, allows_pickle: bool, allows_code: bool) -> None:
    """Refuses a file by its name if opening it may run a program.

    Pickles (and Keras' files, NeMo's archives) run what is in them when they are loaded; Python files, notebooks,
    scripts, libraries and packages are programs. Engines of TensorRT are neither: only a profile that asks for that
    engine loads them.

    Raises:
        UnsafeFileError: that is so, and it is not allowed.
    """
    ends = PurePosixPath(path).suffixes[-2:]  # `x.so.1`, `x.bin.part`
    if not allows_pickle and any(_PICKLES.fullmatch(end) for end in ends):
        raise refused_kind(path, "loading it can run a program (it is a pickle or holds some)", "allow_pickle")
    if not allows_code and any(_CODE.fullmatch(end) for end in ends):
        raise refused_kind(path, "it is a program", "trust_remote_code")


def refused_kind(path: str, what: str, key: str) -> UnsafeFileError:
    """Returns the error that names what is wrong with a file, and what allows it."""
    return UnsafeFileError(
        f"The file {_shown(path)} is refused: {what}; take the model as safetensors or GGUF, or, if you trust its "
        f"maker, allow it with --manifest-allow-unsafe (MIM_MANIFEST_ALLOW_UNSAFE=1) or `security: {{{key}: true}}` "
        "in the manifest."
    )


def check_tree(folder: Path, *, also: Iterable[Path] = ()) -> None:
    """Refuses a folder with links that leave it, names that clash here, or too many files.

    Args:
        folder: of a model.
        also: folders that links may lead into: those of blobs.

    Raises:
        UnsafeFileError: that is so.
        OSError: it cannot be read.
    """
    root = folder.resolve(strict=True)
    allowed = (root, *(one.resolve() for one in also))
    paths = []
    for parent, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() and not any(path.resolve().is_relative_to(one) for one in allowed):
                raise UnsafeFileError(
                    f"{_shown(str(path))} is a link that leaves the model's folder; put the file itself there."
                )
        for name in files:
            path = Path(parent, name)
            if not path.is_file() and not path.is_symlink():
                raise UnsafeFileError(f"{_shown(str(path))} is no regular file; remove it.")
            paths.append(path.relative_to(root).as_posix())
    check_paths(paths, ignores_case=False)


def _path_fault(path: str) -> str | None:
    faults = {
        "it has no name": not path,
        f"its path is longer than {_MAX_PATH_LENGTH} characters": len(path) > _MAX_PATH_LENGTH,
        "its name has characters that cannot be seen": any(
            unicodedata.category(sign) in _UNSEEN or sign in _TURNING for sign in path
        ),
        "its path has a backslash": "\\" in path,
        "its path is absolute": path.startswith("/") or _DRIVE.match(path) is not None,
    }
    found = next((reason for reason, is_so in faults.items() if is_so), None)
    return found or next((reason for reason in map(_name_fault, path.split("/")) if reason), None)


def _name_fault(name: str) -> str | None:
    if name in ("", ".", ".."):
        return "its path has empty parts, `.` or `..`"
    if len(name.encode()) > _MAX_NAME_BYTES:
        return f"a name in its path is longer than {_MAX_NAME_BYTES} bytes"
    if name[-1] in ". " or name[0] == " ":
        return "a name in its path ends with a dot or has spaces around it"
    if _WINDOWS_NAME.fullmatch(name) or _DRIVE.match(name):
        return "a name in its path stands for a device on some systems"
    return None


def _key(path: str, ignores_case: bool) -> str:
    text = unicodedata.normalize("NFC", path)
    return unicodedata.normalize("NFC", text.casefold()) if ignores_case else text


def _clash(path: str, other: str) -> UnsafeFileError:
    return UnsafeFileError(
        f"The files {_shown(path)} and {_shown(other)} cannot be in one folder here; leave one of them out."
    )


def _shown(path: str) -> str:
    text = path if len(path) <= 100 else f"{path[:97]}..."
    return f"'{text}'" if text.isprintable() else ascii(text)
