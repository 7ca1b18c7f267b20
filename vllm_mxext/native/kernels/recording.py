"""`CompiledRecording`: the kernel calls of a forward pass, repeated without the Python that made them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

_WORD = 8


class CompiledRecording:
    """Calls of compiled kernels in order, their argument structures side by side in one buffer."""

    def __init__(self) -> None:
        self._functions: list[Callable[..., Any]] = []
        self._structures: list[bytes] = []
        self._row_fields: list[int | None] = []

    def add(self, function: Callable[..., Any], structure: bytes, row_field: int | None) -> None:
        """Notes a call.

        Args:
            function: the C function.
            structure: its arguments.
            row_field: which of the leading 64-bit fields holds the number of rows; None if none does.
        """
        self._functions.append(function)
        self._structures.append(structure.ljust(-(-len(structure) // _WORD) * _WORD, b"\0"))
        self._row_fields.append(row_field)

    def finish(self) -> None:
        """Lays the structures out; nothing can be added any more."""
        starts = np.cumsum([0, *(len(structure) for structure in self._structures)])
        self._words = np.frombuffer(bytearray(b"".join(self._structures)), dtype=np.int64)
        self._row_words = np.array(
            [
                start // _WORD + field
                for start, field in zip(starts[:-1], self._row_fields, strict=True)
                if field is not None
            ],
            dtype=np.intp,
        )
        address = self._words.ctypes.data
        addresses = [ctypes.c_void_p(address + int(start)) for start in starts[:-1]]
        self._calls = list(zip(self._functions, addresses, strict=True))

    def replay(self, num_rows: int) -> None:
        """Makes all calls again for the leading `num_rows` rows of the same buffers."""
        self._words[self._row_words] = num_rows
        for function, address in self._calls:
            function(address)
