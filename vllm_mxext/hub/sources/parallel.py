"""`in_parallel()`: questions to a server, several at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(work: Callable[[Item], Result], items: Sequence[Item], num_threads: int) -> list[Result]:
    """Returns what `work` makes of each item, in their order; the first error is raised."""
    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(work, items))
