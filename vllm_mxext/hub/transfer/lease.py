"""`Lease`: what one connection fetches of a file, and the reasons for which it stops or asks in another way."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from vllm_mxext.hub.transfer.partial_file import OpenFile


class SupersededError(Exception):
    """What a lease was given for is not wanted any more: somebody else does it, or it begins anew."""


class AgainError(Exception):
    """The same has to be asked for in another way, at once."""


@dataclass(slots=True, eq=False)
class Lease:
    """The right of one connection to fetch some chunks.

    Attributes:
        generation: of the job when it was given.
        position: offset of the next byte of the answer.
        end: index of the chunk behind the last one; None = to the end of the file, whose length nobody knows.
        data: where it is written.
        chunks: those that are fetched by this connection; others that pass by are left alone.
        digest: of the current chunk so far.
        num_finished: chunks that it has brought.
        answered: chunks that its current answer has brought.
        furthest: offset behind the last byte that was ever written: what tells progress from running in circles.
        is_from_start: its answer begins with the first byte of the file, and may well go on to the last.
    """

    generation: int
    position: int
    end: int | None
    data: OpenFile
    chunks: set[int]
    digest: Any = field(default_factory=hashlib.sha256)
    num_finished: int = 0
    answered: set[int] = field(default_factory=set)
    furthest: int = 0
    is_from_start: bool = False
