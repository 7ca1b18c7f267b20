"""Times a server from the start of its process to its first answer, and the memory it holds then."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from vllm_mxext.bench.server_process import OUR_SERVER, ServerProcess
from vllm_mxext.errors import EngineError

_BODY = {"prompt": "2 + 3 =", "max_tokens": 1, "temperature": 0}


def measure_startup(
    flags: Sequence[str], log: Path, before_stop: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Starts our server once and returns seconds since the start, and megabytes.

    Args:
        flags: of `mxext serve`.
        log: file for the server's output.
        before_stop: called when everything is measured, while the server runs.

    Raises:
        EngineDeadError: the server did not start.
        EngineError: it did not end in order.
    """
    start = time.perf_counter()
    with ServerProcess([*OUR_SERVER, *flags], log) as server:
        server.wait_for("/v1/health/live")
        open_s = time.perf_counter() - start
        server.wait_for("/v1/health/ready")
        ready_s = time.perf_counter() - start
        with httpx.Client(base_url=server.url, timeout=60.0, trust_env=False) as client:
            model = client.get("/v1/models").json()["data"][0]["id"]
            client.post("/v1/completions", json={**_BODY, "model": model}).raise_for_status()
            answered_s = time.perf_counter() - start
        memory_mb = server.memory_bytes() / 1e6
        peak_mb = server.peak_bytes() / 1e6
        before_stop()
        if server.stop() != 0:
            raise EngineError("The server did not end in order.")
    return {
        "port_open_s": open_s,
        "ready_s": ready_s,
        "answered_s": answered_s,
        "memory_mb": memory_mb,
        "peak_mb": peak_mb,
    }
