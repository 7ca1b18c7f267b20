"""How fast this machine reads memory right now: at batch 1 that decides the speed, and it varies over minutes."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_PROBE_BYTES = 512 * 2**20


def read_bandwidth(num_threads: int, repeats: int = 3, clock: Callable[[], float] = time.perf_counter) -> float:
    """Returns the best of `repeats` readings of 512 MiB by `num_threads` threads, in bytes per second.

    Args:
        num_threads: a single one is the calling thread, so that `clock` may be its CPU time.
        repeats: readings.
        clock: seconds.
    """
    parts = np.array_split(np.ones(_PROBE_BYTES // 8), num_threads)
    best_s = float("inf")
    with ThreadPoolExecutor(num_threads) as pool:
        read = map if num_threads == 1 else pool.map
        for _ in range(repeats):
            start = clock()
            list(read(np.max, parts))
            best_s = min(best_s, clock() - start)
    return _PROBE_BYTES / best_s
