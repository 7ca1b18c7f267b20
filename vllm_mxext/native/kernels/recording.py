"""`CompiledRecording`: the kernel calls of a forward pass, repeated without the Python that made them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

_WORD = 8


class CompiledRecording:
    """Calls of compiled kernels in order: an array of them, and their argument structures side by side in one buffer.

    Args:
        replay: the C function that makes an array of calls (`mx_replay` of `csrc/kernels.h`).
    """

    def __init__(self, replay: Callable[[int, int], None]) -> None:
        self._replay = replay
        self._functions: list[int] = []
        self._structures: list[bytes] = []
        self._row_fields: list[int | None] = []

    def add(self, function: Callable[..., Any], structure: bytes, row_field: int | None) -> None:
        """Notes a call.

        Args:
            function: the C function, as ctypes knows it.
            structure: its arguments.
            row_field: which of the leading 64-bit fields holds the number of rows; None if none does.
        """
        address = ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]
        assert address is not None
        self._functions.append(address)
        self._structures.append(structure.ljust(-(-len(structure) // _WORD) * _WORD, b"\0"))
        self._row_fields.append(row_field)

    def finish(self) -> None:
        """Lays the structures out; nothing can be added any more."""
        starts = np.cumsum([0, *(len(structure) for structure in self._structures)])[:-1]
        self._words = np.frombuffer(bytearray(b"".join(self._structures)), dtype=np.int64)
        self._row_words = np.array(
            [
                start // _WORD + field
                for start, field in zip(starts, self._row_fields, strict=True)
                if field is not None
            ],
            dtype=np.intp,
        )
        self._calls = np.empty((len(starts), 2), dtype=np.int64)
        self._calls[:, 0] = self._functions
        self._calls[:, 1] = self._words.ctypes.data + starts

    def replay(self, num_rows: int) -> None:
        """Makes all calls again for the leading `num_rows` rows of the same buffers."""
        self._words[self._row_words] = num_rows
        self._replay(self._calls.ctypes.data, len(self._calls))
