"""`EnginePool`: engines side by side as long as memory suffices."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from engines import Comparison
from peers.process import Measurement, WorkerProcess

from vllm_mxext.bench.metrics import summarize
from vllm_mxext.bench.workload import Workload
from vllm_mxext.config.machine import usable_memory

_WARM_UP = Workload(2, 16, 4)
_LOAD_FACTOR = 2.0
"""Memory that an engine may need for its weights, over the size of their file: some convert them at load."""
_SPARE_BYTES = 2**30

Key = tuple[str, bool]
"""Name of an engine, and whether it caches prefixes."""


class EnginePool:
    """Starts engines when they are needed, and ends the longest unused ones when memory is short.

    Args:
        comparison: what they have in common.
    """

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._running: dict[Key, WorkerProcess] = {}
        self._load_s: dict[str, list[float]] = {}
        self._load_peak_bytes: dict[str, int] = {}
        self._peak_bytes: dict[str, int] = {}

    def measure(self, name: str, workload: Workload, seed: int) -> Measurement:
        """Measures one engine on one workload; prefixes are cached where the workload shares one."""
        key = (name, workload.shared_len > 0)
        worker = self._running.pop(key, None)
        self._make_room(name, worker is not None, workload)
        if worker is None:
            worker = self._start(key)
        self._running[key] = worker  # the last one is the one used last
        measurement = worker.measure(workload, seed)
        self._peak_bytes[name] = max(self._peak_bytes.get(name, 0), worker.peak_bytes())
        return measurement

    def figures(self) -> dict[str, dict[str, float]]:
        """Returns seconds of loading (median) and peak memory, at load and in all, of each engine."""
        return {
            name: {
                "load_s": round(summarize(seconds).median, 2),
                "load_peak_bytes": self._load_peak_bytes[name],
                "peak_bytes": self._peak_bytes[name],
            }
            for name, seconds in self._load_s.items()
        }

    def close(self) -> None:
        """Ends all engines."""
        while self._running:
            self._running.popitem()[1].close()

    def __enter__(self) -> EnginePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, key: Key) -> WorkerProcess:
        name, enable_prefix_caching = key
        worker = self._comparison.start(name, enable_prefix_caching)
        print(f"{name} loaded in {worker.load_s:.1f} s", flush=True)
        self._load_s.setdefault(name, []).append(worker.load_s)
        self._load_peak_bytes[name] = max(self._load_peak_bytes.get(name, 0), worker.load_peak_bytes)
        worker.measure(_WARM_UP, 0)
        return worker

    def _make_room(self, name: str, is_running: bool, workload: Workload) -> None:
        needed = workload.num_positions * self._comparison.kv_token_bytes + _SPARE_BYTES
        if not is_running:
            needed += int(_LOAD_FACTOR * _size_bytes(self._comparison.model(name)))
        while self._running and usable_memory().available_bytes < needed:
            oldest = next(iter(self._running))
            print(f"ending {oldest[0]} to make room", flush=True)
            self._running.pop(oldest).close()


def _size_bytes(model: Path) -> int:
    """Size of a file, or of the files in a folder."""
    return sum(path.stat().st_size for path in (model.iterdir() if model.is_dir() else [model]))
