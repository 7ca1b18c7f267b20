"""Times first and later starts from the beginning of the process to the first token, and the memory they take.

    python benchmarks/startup.py --repeats 5
    python benchmarks/startup.py -- --model FOLDER --quantization int8
    python benchmarks/startup.py --offline -- --model FOLDER

Each repeat begins with an empty cache folder: its first start reads and packs the checkpoint, and the later one takes
the prepared weights that the first one wrote. Read the checkpoint once before, so that it is in the page cache. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vllm_mxext.bench.metrics import summarize
from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.bench.server_process import peak_bytes
from vllm_mxext.bench.startup import measure_startup

PROMPT = "2 + 3 ="
WRITE_TIMEOUT_S = 120.0

OFFLINE_PROGRAM = f"""
import json, sys, time
from vllm_mxext import LLM, SamplingParams
llm = LLM(**json.loads(sys.argv[1]))
loaded = time.monotonic()
llm.generate([{PROMPT!r}], SamplingParams(max_tokens=1, temperature=0), use_tqdm=False)
print(json.dumps([loaded, time.monotonic()]), flush=True)
"""

Figures = dict[str, float]


def measure_server(flags: list[str], folder: Path) -> Figures:
    """Starts the server once and returns seconds since the start, and megabytes."""
    log = folder / "server.log"
    log.write_text("")
    flags = [*flags, "--cache-path", str(folder / "cache")]
    return measure_startup(flags, log, before_stop=lambda: wait_for_prepared_weights(log))


def measure_offline(flags: list[str], folder: Path) -> Figures:
    """Runs a program that makes an `LLM` and generates a token; returns seconds since its start, and megabytes."""
    names = [flag.removeprefix("--").replace("-", "_") for flag in flags[::2]]
    arguments = {**dict(zip(names, flags[1::2], strict=True)), "cache_path": str(folder / "cache")}
    start = time.monotonic()
    command = [sys.executable, "-c", OFFLINE_PROGRAM, json.dumps(arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        loaded, answered = json.loads(process.stdout.readline())
        peak_mb = peak_bytes(process.pid) / 1e6
    if process.returncode != 0:
        raise RuntimeError("the program failed")
    return {"loaded_s": loaded - start, "answered_s": answered - start, "peak_mb": peak_mb}


def wait_for_prepared_weights(log: Path) -> None:
    """Returns when the server that writes this log has written its prepared file, if it means to write one."""
    deadline = time.monotonic() + WRITE_TIMEOUT_S
    while True:
        text = log.read_text(encoding="utf-8")
        if "none yet for this model" not in text or "weights: wrote" in text or "weights: not written" in text:
            return
        if time.monotonic() > deadline:
            raise RuntimeError("the prepared weights were not written")
        time.sleep(0.1)


def main() -> None:
    """Reads the arguments, measures and reports."""
    parser = argparse.ArgumentParser(description="Seconds from the start to the first token, and memory.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--offline", action="store_true", help="an LLM in a program instead of the server")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="after --: flags of 'mxext serve', each with a value")
    arguments = parser.parse_args()
    flags = [flag for flag in arguments.flags if flag != "--"]
    measure = measure_offline if arguments.offline else measure_server
    runs: dict[str, list[Figures]] = {"first start": [], "later start": []}
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            for measured in runs.values():
                measured.append(measure(flags, Path(folder)))
    results = {
        f"{start}: {name}": summarize([run[name] for run in measured])
        for start, measured in runs.items()
        for name in measured[0]
    }
    rows = [(name, figure.median, figure.minimum, figure.maximum) for name, figure in results.items()]
    print(format_table(("figure", "median", "min", "max"), rows))
    config = {"flags": flags, "repeats": arguments.repeats, "offline": arguments.offline}
    print(json_line("startup", config, {name: figure.as_dict() for name, figure in results.items()}))


if __name__ == "__main__":
    main()
