"""How fast this machine reads memory right now: at batch 1 that decides the speed, and it varies over minutes."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_PROBE_BYTES = 512 * 2**20


def read_bandwidth(num_threads: int, repeats: int = 3) -> float:
    """Returns the best of `repeats` readings of 512 MiB by `num_threads` threads, in bytes per second."""
    parts = np.array_split(np.ones(_PROBE_BYTES // 8), num_threads)
    best_s = float("inf")
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in range(repeats):
            start = time.perf_counter()
            list(pool.map(np.max, parts))
            best_s = min(best_s, time.perf_counter() - start)
    return _PROBE_BYTES / best_s
