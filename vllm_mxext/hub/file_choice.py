"""Which of a source's files belong to an artifact: pinned ones, those of its patterns, or what its format needs."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from vllm_mxext.errors import ChecksumError, DownloadError, HubCause, UnsafeFileError
from vllm_mxext.hub.manifest.model import Artifact, FileEntry
from vllm_mxext.hub.safety import check_file_kind, check_paths
from vllm_mxext.hub.sources.interface import Listing, RemoteFile

_TEXTS = (
    "*.json", "*.jinja", "tokenizer*", "*.model", "*.tiktoken", "merges.txt", "vocab.txt", "README.md", "LICENSE*",
    "NOTICE*", "USE_POLICY*",
)  # fmt: skip
_WEIGHTS = {
    "safetensors": ("*.safetensors",),
    "mlx": ("*.safetensors",),
    "gguf": ("*.gguf",),
    "pytorch": ("*.bin", "*.pt", "*.pth"),
    "tensorrt_llm": ("*.engine", "*.plan"),
    "onnx": ("*.onnx", "*.onnx_data"),
}
_MAX_SIZE = 2**50
_SECOND_COPY = "consolidated*.safetensors"
"""Mistral's own layout of weights that are there in Hugging Face's layout too."""


def choose_files(
    uri: str, artifact: Artifact, listing: Listing, *, allows_pickle: bool, allows_code: bool
) -> tuple[RemoteFile, ...]:
    """Returns the files to download, in the order of their paths.

    Args:
        uri: the source, for messages.
        artifact: what is wanted.
        listing: what the source has.
        allows_pickle: files that have to be unpickled may be among them.
        allows_code: Python files may be among them.

    Raises:
        UnsafeFileError: a path leaves its folder, there are too many files, or one that the artifact names is of a kind
            that is not allowed.
        DownloadError: what is wanted is not there, or its size makes no sense.
        ChecksumError: the source has other bytes than the manifest pins.
    """
    files = sorted(listing.files, key=lambda file: file.path)
    if artifact.files:
        by_path = {file.path: file for file in files}
        chosen = [_pinned(uri, entry, by_path.get(entry.path)) for entry in artifact.files]
    elif artifact.include:
        chosen = [file for file in files if _matches(file.path, artifact.include)]
    else:
        chosen = _of_format(files, artifact.format)
        if artifact.format != "pytorch":  # which is nothing but pickles
            chosen = [file for file in chosen if _is_plain(file.path)]
    chosen = [file for file in chosen if not _matches(file.path, artifact.exclude)]
    if artifact.files or artifact.include or artifact.format == "pytorch":
        for file in chosen:
            check_file_kind(file.path, allows_pickle=allows_pickle, allows_code=allows_code)
    check_paths((file.path for file in chosen), ignores_case=False)
    for file in chosen:
        if file.size is not None and not 0 <= file.size <= _MAX_SIZE:
            raise DownloadError(f"{uri} says that '{file.path}' has {file.size:.3g} bytes; take another source.")
    if not any(_matches(file.path, _WEIGHTS.get(artifact.format, ("*",))) for file in chosen):
        raise DownloadError(_no_weights(uri, artifact, files), cause=HubCause.NOT_FOUND)
    return tuple(chosen)


def _pinned(uri: str, entry: FileEntry, file: RemoteFile | None) -> RemoteFile:
    if file is None:
        raise DownloadError(f"{uri} has no file '{entry.path}', which the manifest lists.", cause=HubCause.NOT_FOUND)
    for what, wanted, found in (("size", entry.size, file.size), ("SHA-256", entry.sha256, file.sha256)):
        if wanted is not None and found is not None and wanted != found:
            raise ChecksumError(
                f"The {what} of '{entry.path}' at {uri} is {found} and the manifest says {wanted}; the source has "
                "another revision, or the manifest is out of date."
            )
    return RemoteFile(
        entry.path,
        file.size if entry.size is None else entry.size,
        file.sha256 if entry.sha256 is None else entry.sha256,
        file.locator,
    )


def _of_format(files: list[RemoteFile], form: str) -> list[RemoteFile]:
    patterns = (*_TEXTS, *_WEIGHTS.get(form, ("*",)))
    found = [file for file in files if "/" not in file.path and _matches(file.path, patterns)]
    weights = [file for file in found if _matches(file.path, ("*.safetensors",))]
    copies = {file.path for file in weights if _matches(file.path, (_SECOND_COPY,))}
    return [file for file in found if file.path not in copies] if len(copies) < len(weights) else found


def _is_plain(path: str) -> bool:
    """Whether a file that nobody asked for by name is harmless: `tokenizer*` may be a program too."""
    try:
        check_file_kind(path, allows_pickle=False, allows_code=False)
    except UnsafeFileError:
        return False
    return True


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def _no_weights(uri: str, artifact: Artifact, files: list[RemoteFile]) -> str:
    kinds = sorted({PurePosixPath(file.path).suffix for file in files} - {""})
    there = f"; it has {', '.join(kinds[:8])}" if kinds else ", and no others either"
    return f"{uri} has no files of the {artifact.format} artifact '{artifact.name}'{there}; name another artifact."
