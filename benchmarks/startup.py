"""Times `mxext serve` from the start of the process to the first answered request, and the memory it holds then.

    python benchmarks/startup.py --repeats 5
    python benchmarks/startup.py -- --model FOLDER

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import httpx

from vllm_mxext.bench.metrics import summarize
from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.bench.server_process import OUR_SERVER, ServerProcess

BODY = {"prompt": "2 + 3 =", "max_tokens": 4, "temperature": 0}


def measure(flags: list[str], log: Path) -> dict[str, float]:
    """Starts the server once and returns seconds since the start, and bytes."""
    start = time.perf_counter()
    with ServerProcess([*OUR_SERVER, *flags], log) as server:
        server.wait_for("/v1/health/live")
        open_s = time.perf_counter() - start
        server.wait_for("/v1/health/ready")
        ready_s = time.perf_counter() - start
        with httpx.Client(base_url=server.url, timeout=60.0, trust_env=False) as client:
            model = client.get("/v1/models").json()["data"][0]["id"]
            client.post("/v1/completions", json={**BODY, "model": model}).raise_for_status()
            answered_s = time.perf_counter() - start
        memory_mb = server.memory_bytes() / 1e6
        if server.stop() != 0:
            raise RuntimeError("the server did not end in order")
    return {"port_open_s": open_s, "ready_s": ready_s, "answered_s": answered_s, "memory_mb": memory_mb}


def main() -> None:
    """Reads the arguments, measures and reports."""
    parser = argparse.ArgumentParser(description="Seconds from the start of the server to its first answer.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="after --: flags of 'mxext serve'")
    arguments = parser.parse_args()
    flags = [flag for flag in arguments.flags if flag != "--"]
    with tempfile.TemporaryDirectory() as folder:
        runs = [measure(flags, Path(folder) / "server.log") for _ in range(arguments.repeats)]
    results = {name: summarize([run[name] for run in runs]) for name in runs[0]}
    rows = [(name, figure.median, figure.minimum, figure.maximum) for name, figure in results.items()]
    print(format_table(("figure", "median", "min", "max"), rows))
    config = {"flags": flags, "repeats": arguments.repeats}
    print(json_line("startup", config, {name: figure.as_dict() for name, figure in results.items()}))


if __name__ == "__main__":
    main()
