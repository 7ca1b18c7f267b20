"""`Snapshot`: one revision of a model as a folder of this machine, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a snapshot.

    Attributes:
        path: inside the model, with `/`.
        size: bytes.
        sha256: 64 hexadecimal digits, of the bytes as they were when the snapshot was published.
    """

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A whole, verified model.

    Attributes:
        name: of the model.
        revision: its name at the source: commit, version, or digest of the listing.
        uri: source that it came from; empty if it was imported without one.
        files: in the order of their paths.
        folder: where readers find them.
        asked_revision: branch or tag that was asked for when it was pulled; empty if none was.
        created_s: Unix time of publishing.
    """

    name: str
    revision: str
    uri: str
    files: tuple[StoredFile, ...]
    folder: Path
    asked_revision: str = ""
    created_s: float = 0.0

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)
