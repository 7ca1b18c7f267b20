"""`LockFile`: `model.lock`, which pins source, revision and digests of models, and refuses whatever differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_mxext.config.sources import did_you_mean
from vllm_mxext.errors import HubCause, HubError, ManifestError, StoreError
from vllm_mxext.hub.store.blobs import is_sha256
from vllm_mxext.hub.store.layout import replace_file
from vllm_mxext.hub.store.snapshot import Snapshot, StoredFile

if TYPE_CHECKING:
    from vllm_mxext.hub.manifest.document import Node
    from vllm_mxext.hub.sources.interface import Listing, RemoteFile

SCHEMA = "mx.hub.lock/v1"

_HEADER = "# Written by `mxext hub lock`; belongs into version control.\n"
_MODEL_KEYS = ("source", "revision", "profile", "files")
_FILE_KEYS = ("path", "size", "sha256")


@dataclass(frozen=True, slots=True)
class LockedModel:
    """What is pinned of a model.

    Attributes:
        source: URI that it came from, without secrets.
        revision: of that source.
        files: all of them, in the order of their paths.
        profile: id of the profile that was chosen; empty if none was.
    """

    source: str
    revision: str
    files: tuple[StoredFile, ...]
    profile: str = ""


@dataclass(frozen=True, slots=True)
class LockFile:
    """What is pinned.

    Attributes:
        models: by name in the store.
        path: of the file, for messages.
    """

    models: Mapping[str, LockedModel] = field(default_factory=dict)
    path: Path = Path("model.lock")

    def with_snapshot(self, snapshot: Snapshot, profile: str = "") -> LockFile:
        """Returns these pins and those of a snapshot, which take the place of older ones of its name."""
        files = tuple(sorted(snapshot.files, key=lambda file: file.path))
        model = LockedModel(snapshot.uri, snapshot.revision, files, profile)
        return replace(self, models={**self.models, snapshot.name: model})

    def revision(self, name: str) -> str:
        """Returns the revision that a model has to have.

        Raises:
            HubError: the model is not pinned.
        """
        return self._model(name).revision

    def check(self, name: str, listing: Listing) -> Listing:
        """Refuses files of a source that are not those that are pinned.

        Returns:
            The files with the sizes and digests that they have to have, for those who download them.

        Raises:
            HubError: something is not pinned, is missing, or differs.
        """
        model = self._model(name)
        self._check_revision(name, model, listing.revision)
        pinned = {file.path: file for file in model.files}
        self._check_paths(name, pinned, [file.path for file in listing.files])
        return replace(listing, files=tuple(self._pinned(name, file, pinned[file.path]) for file in listing.files))

    def check_snapshot(self, name: str, snapshot: Snapshot) -> None:
        """Refuses a stored snapshot that is not the one that is pinned.

        Raises:
            HubError: something is not pinned, is missing, or differs.
        """
        model = self._model(name)
        self._check_revision(name, model, snapshot.revision)
        pinned = {file.path: file for file in model.files}
        self._check_paths(name, pinned, [file.path for file in snapshot.files])
        for file in snapshot.files:
            if file != pinned[file.path]:
                raise self._refusal(name, f"'{file.path}' has other content than the pinned one")

    def _model(self, name: str) -> LockedModel:
        if name not in self.models:
            raise self._refusal(name, "the model is not pinned")
        return self.models[name]

    def _check_revision(self, name: str, model: LockedModel, revision: str) -> None:
        if revision != model.revision:
            raise self._refusal(name, f"the revision is {revision}, and {model.revision} is pinned")

    def _check_paths(self, name: str, pinned: Mapping[str, StoredFile], paths: Iterable[str]) -> None:
        there = set(paths)
        for path in sorted(there - pinned.keys()):
            raise self._refusal(name, f"'{path}' is not pinned")
        for path in sorted(pinned.keys() - there):
            raise self._refusal(name, f"'{path}' is pinned, and is not there any more")

    def _pinned(self, name: str, file: RemoteFile, pinned: StoredFile) -> RemoteFile:
        if file.size not in (None, pinned.size):
            raise self._refusal(name, f"'{file.path}' has {file.size} bytes, and {pinned.size} are pinned")
        if file.sha256 is not None and file.sha256.lower() != pinned.sha256:
            raise self._refusal(name, f"'{file.path}' has other content than the pinned one")
        return replace(file, size=pinned.size, sha256=pinned.sha256)

    def _refusal(self, name: str, reason: str) -> HubError:
        return HubError(
            f"--frozen refuses {name}: {reason} in '{self.path}'; if that is meant, pin it with `mxext hub lock`.",
            cause=HubCause.NOT_LOCKED,
        )


def read_lock_file(path: Path) -> LockFile:
    """Reads a lock file.

    Raises:
        HubError: there is none.
        ManifestError: it is wrong; the text begins with `file:line: `.
    """
    from vllm_mxext.hub.manifest import document  # noqa: PLC0415 - few pay for YAML

    if not path.exists():
        raise HubError(
            f"There is no lock file '{path}', which --frozen asks for; make it with `mxext hub lock`, or name it with "
            "--lock-file.",
            cause=HubCause.NOT_LOCKED,
        )
    root = document.load(path)
    reader = _Reader(path)
    fields = reader.mapping(root, ("schema", "models"))
    schema = reader.text(fields["schema"], "schema")
    if schema != SCHEMA:
        raise reader.wrong(
            fields["schema"], f"The schema is '{schema}', and only {SCHEMA} is read; update this program."
        )
    models = fields["models"]
    if not isinstance(models.value, dict):
        raise reader.wrong(models, "'models' must be a mapping of names.")
    return LockFile({name: reader.model(node) for name, node in models.fields.items()}, path)


def write_lock_file(lock: LockFile) -> None:
    """Writes a lock file, in one step; equal pins make equal bytes.

    Raises:
        StoreError: it cannot be written.
    """
    import yaml  # noqa: PLC0415

    class Dumper(yaml.SafeDumper):
        """Quotes what might be read as a number somewhere: `1e5` is one in YAML 1.2 and none in 1.1."""

    Dumper.add_representer(
        str,
        lambda dumper, text: dumper.represent_scalar(
            "tag:yaml.org,2002:str", text, style=None if text[:1].isalpha() else '"'
        ),
    )
    content = {"schema": SCHEMA, "models": {name: _plain(model) for name, model in sorted(lock.models.items())}}
    text = yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=2**31)
    try:
        replace_file(lock.path, f"{_HEADER}{text}".encode())
    except OSError as error:
        raise StoreError(
            f"The lock file '{lock.path}' cannot be written ({error.strerror}); name another one with --lock-file.",
            cause=HubCause.NO_PERMISSION,
        ) from error


def _plain(model: LockedModel) -> dict[str, Any]:
    files = [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in model.files]
    return {"source": model.source, "revision": model.revision, "profile": model.profile, "files": files}


@dataclass(frozen=True, slots=True)
class _Reader:
    """Values of nodes, and complaints with their lines."""

    path: Path

    def model(self, node: Node) -> LockedModel:
        fields = self.mapping(node, _MODEL_KEYS, optional=("source", "profile"))
        files = [self.file(entry) for entry in self.list(fields["files"], "files")]
        seen: set[str] = set()
        for entry, file in zip(fields["files"].items, files, strict=True):
            if file.path in seen:
                raise self.wrong(entry, f"'{file.path}' is pinned twice; remove one.")
            seen.add(file.path)
        return LockedModel(
            self.text(fields["source"], "source") if "source" in fields else "",
            self.text(fields["revision"], "revision"),
            tuple(sorted(files, key=lambda file: file.path)),
            self.text(fields["profile"], "profile") if "profile" in fields else "",
        )

    def file(self, node: Node) -> StoredFile:
        fields = self.mapping(node, _FILE_KEYS)
        size, sha256 = fields["size"].value, self.text(fields["sha256"], "sha256")
        if type(size) is not int or size < 0:
            raise self.wrong(fields["size"], "'size' must be a number of bytes.")
        if not is_sha256(sha256):
            raise self.wrong(fields["sha256"], "'sha256' must be 64 hexadecimal digits in small letters.")
        return StoredFile(self.text(fields["path"], "path"), size, sha256)

    def mapping(self, node: Node, keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Node]:
        if not isinstance(node.value, dict):
            raise self.wrong(node, f"A mapping with the keys {', '.join(keys)} belongs here.")
        for key in node.fields:
            if key not in keys:
                line = node.line_of([key])
                raise ManifestError(f"{self.path}:{line}: Unknown key '{key}'{did_you_mean(key, keys)}")
        for key in keys:
            if key not in node.fields and key not in optional:
                raise self.wrong(node, f"The key '{key}' is missing.")
        return node.fields

    def list(self, node: Node, key: str) -> list[Node]:
        if not isinstance(node.value, list):
            raise self.wrong(node, f"'{key}' must be a list.")
        return node.items

    def text(self, node: Node, key: str) -> str:
        if not isinstance(node.value, str):
            raise self.wrong(node, f"'{key}' must be text; put it in quotes.")
        return node.value

    def wrong(self, node: Node, sentence: str) -> ManifestError:
        return ManifestError(f"{self.path}:{node.line}: {sentence}")
