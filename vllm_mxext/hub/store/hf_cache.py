"""Models that other programs have downloaded: the caches of `huggingface_hub` and `modelscope`, read and never written.

Hugging Face: `models--ORG--NAME/{refs/<branch>, snapshots/<commit>/<path> -> blobs/<ETag>}`; the ETag is the SHA-256 of
files in LFS or Xet, and the SHA-1 that Git gives a file otherwise; blobs may be links into `blobs/` of the whole cache
(huggingface_hub 1.x). ModelScope: `models/ORG--NAME/snapshots/<revision>/<path>` (modelscope 1.38 and later).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from vllm_mxext.errors import UnsafeFileError
from vllm_mxext.hub.safety import check_tree
from vllm_mxext.hub.store.blobs import is_sha256

_HUGGING_FACE = re.compile(r"(?:hf://)?(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:[@:](?P<revision>[^/]+))?/?")
_MODELSCOPE = re.compile(r"modelscope://(?P<name>[\w.-]+/[\w.-]+)(?:[@:](?P<revision>[^/]+))?/?")
_GIT_SHA1 = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"(?P<start>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<end>\.safetensors|\.gguf)")
_WEIGHTS = (".safetensors", ".gguf")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
_UNFINISHED = (".incomplete", ".lock", ".tmp")
_BLOCK_BYTES = 2**20


def hugging_face_folder(environ: Mapping[str, str]) -> Path:
    """Returns where `huggingface_hub` keeps its files."""
    home = environ.get("HF_HOME") or os.path.join(_cache_home(environ), "huggingface")
    folder = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(folder)))


def modelscope_folder(environ: Mapping[str, str]) -> Path:
    """Returns where `modelscope` keeps its files."""
    folder = environ.get("MODELSCOPE_CACHE") or os.path.join("~", ".cache", "modelscope")
    return Path(os.path.expanduser(folder))


def find_snapshot(
    uris: Iterable[str],
    revision: str,
    environ: Mapping[str, str],
    is_right: Callable[[Path], bool] = lambda _folder: True,
) -> Path | None:
    """Finds a model that is there as a whole; None if it is not, or nobody can tell.

    Whole: no broken link, none that leaves the cache, all shards, and a tokenizer beside safetensors. A file of weights
    in GGUF is whole by itself. What has neither kind of weights is not used.

    Args:
        uris: `hf://ORG/NAME`, `ORG/NAME` or `modelscope://ORG/NAME`, in order of preference; others are passed over.
        revision: branch, tag or commit; empty = that of the URI, or the hub's main branch.
        environ: variables that say where the caches are.
        is_right: whether a folder that is whole has what is wanted; others are passed over.
    """
    for uri in uris:
        for folder in _candidates(uri, revision, environ):
            if _is_whole(folder, folder.parents[2]) and is_right(folder):
                return folder
    return None


class CachedBlobs:
    """Finds files in the cache of Hugging Face by their SHA-256; hashes each once before it is given out.

    Args:
        folder: of the cache.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._checked: dict[tuple[str, int, int], str] = {}

    def __call__(self, sha256: str) -> Path | None:
        """Returns where the file with this digest lies; None if it is not there or not what its name says."""
        if not is_sha256(sha256):
            return None
        try:
            repositories = [entry.path for entry in os.scandir(self._folder) if entry.name.startswith("models--")]
            candidates = (Path(one, "blobs", sha256) for one in repositories)
            return next((path for path in candidates if path.is_file() and self._digest(path) == sha256), None)
        except OSError:
            return None

    def _digest(self, path: Path) -> str:
        status = path.stat()
        key = (str(path), status.st_size, status.st_mtime_ns)
        if key not in self._checked:
            self._checked[key] = sha256_of(path)
        return self._checked[key]


def _cache_home(environ: Mapping[str, str]) -> str:
    return environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")


def _candidates(uri: str, revision: str, environ: Mapping[str, str]) -> Iterator[Path]:
    """Yields folders of a model at a revision, whether they are there or not."""
    if match := _MODELSCOPE.fullmatch(uri):
        model = modelscope_folder(environ) / "models" / match["name"].replace("/", "--")
        asked = revision or match["revision"]
        yield from (model / "snapshots" / one for one in ((asked,) if asked else ("master", "main")) if _is_name(one))
    elif match := _HUGGING_FACE.fullmatch(uri):
        model = hugging_face_folder(environ) / f"models--{match['name'].replace('/', '--')}"
        asked = revision or match["revision"] or "main"
        if _GIT_SHA1.fullmatch(asked):
            yield model / "snapshots" / asked
            return
        try:
            commit = (model / "refs" / asked).read_text("ascii").strip() if _is_path(asked) else ""
        except (OSError, ValueError):
            return
        if _GIT_SHA1.fullmatch(commit):
            yield model / "snapshots" / commit


def _is_name(text: str) -> bool:
    return _is_path(text) and "/" not in text


def _is_path(text: str) -> bool:
    return "\0" not in text and not any(part in ("", ".", "..") for part in text.split("/"))


def _is_whole(folder: Path, cache: Path) -> bool:
    try:
        check_tree(folder, also=[cache])
        paths = set(_paths(folder))
        if any((folder / path).stat().st_size == 0 for path in paths if path.endswith(_WEIGHTS)):
            return False
        indexed = [name for path in paths if path.endswith(".safetensors.index.json") for name in _shards(folder, path)]
    except (OSError, UnsafeFileError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False
    has_safetensors = any(path.endswith(".safetensors") for path in paths)
    is_complete = (
        paths.issuperset((*indexed, *_numbered(paths)))
        and not any(path.endswith(_UNFINISHED) for path in paths)
        and any(path.endswith(_WEIGHTS) for path in paths)
    )
    return is_complete and (not has_safetensors or ("config.json" in paths and not paths.isdisjoint(_TOKENIZERS)))


def _shards(folder: Path, index: str) -> list[str]:
    """Returns the files that an index of safetensors names."""
    names = json.loads((folder / index).read_bytes())["weight_map"].values()
    return [(Path(index).parent / str(name)).as_posix() for name in names]


def _numbered(paths: Iterable[str]) -> Iterator[str]:
    """Yields all shards of which there is one."""
    for path in paths:
        if match := _SHARD.fullmatch(path):
            count = min(int(match["count"]), 10_000)
            yield from (f"{match['start']}-{one:05}-of-{count:05}{match['end']}" for one in range(1, count + 1))


def _paths(folder: Path) -> Iterator[str]:
    """Yields the paths of files below a folder.

    Raises:
        FileNotFoundError: a link leads nowhere, or the folder is not there.
    """
    folder.stat()
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            path.stat()
            yield path.relative_to(folder).as_posix()


def sha256_of(file: Path) -> str:
    """Returns the digest of a file as it is now.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
