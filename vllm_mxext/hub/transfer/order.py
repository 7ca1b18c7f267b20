"""`Order`: one content that is wanted, and `Tuning`: sizes and numbers of downloads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm_mxext.hub.sources.interface import RemoteFile, Source


@dataclass(frozen=True, slots=True)
class Tuning:
    """Sizes and numbers of downloads.

    Attributes:
        range_chunks: asked for at once, at most.
        num_attempts: without progress, until a file is given up.
        spare_bytes: left free on the disk.
        busy_s: seconds after which a file that another process is at is looked at again.
    """

    range_chunks: int = 16
    num_attempts: int = 6
    spare_bytes: int = 64 * 2**20
    busy_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Seed:
    """A damaged file that has most of what is wanted.

    Attributes:
        path: where.
        hashes: chunks that are believed to be good, and their digests.
    """

    path: Path
    hashes: Mapping[int, str]


@dataclass(slots=True, eq=False)
class Order:
    """One content that is wanted.

    Attributes:
        key: its digest, or another name that stays the same.
        file: one of the files with this content.
        source: where from.
        num_paths: files with this content.
        seed: to be replaced, instead of being enough; None if nothing is to be replaced.
        not_before_s: when it is worth while to begin.
    """

    key: str
    file: RemoteFile
    source: Source
    num_paths: int = 0
    seed: Seed | None = None
    not_before_s: float = 0.0
