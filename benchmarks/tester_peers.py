"""Our tester, `vllm bench serve` and `guidellm run` in turns on one server, each figure by each tool's definitions.

    python benchmarks/peers/make_environments.py vllm guidellm
    python benchmarks/tester_peers.py --rounds 5

The first server has known delays and notes when it sent what; the second is ours with the built-in model. In every
round our recorded times also go through the peers' own code, which must give the figures that `--compat` gives.
Server and tester have half of the cores each: a server whose cores the tester takes is another one for each tester.
`--overhead` measures the processor time of each tester instead. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.bench_servers.mock_server import Behaviour
from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.bench.serve.result import RequestRecord, RunResult, Stage
from vllm_mxext.bench.serve.statistics import StageFigures, stage_figures
from vllm_mxext.bench.server_process import OUR_SERVER, ServerProcess
from vllm_mxext.builtin import model_path

ROOT = Path(__file__).resolve().parents[1]
TESTERS = ("ours", "vllm", "guidellm")
SERVERS = ("mock", "mx-tiny")
PEERS = Path(__file__).resolve().parent / "peers"
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

BEHAVIOUR = Behaviour(0.05, 0.01, tokens_per_chunk=2, jitter_s=0.004, role_chunk_s=0.02, tail_s=0.03)
"""Two tokens per event, an event before the first text and a pause after the last: what the definitions tell apart."""

FAST = Behaviour(gap_s=0.02, is_precise=False)

VLLM_KEYS = {
    "TTFT median (ms)": "median_ttft_ms",
    "TTFT P99 (ms)": "p99_ttft_ms",
    "TPOT mean (ms)": "mean_tpot_ms",
    "gap mean (ms)": "mean_itl_ms",
    "E2E median (ms)": "median_e2el_ms",
    "requests/s": "request_throughput",
    "output tokens/s": "output_throughput",
    "output tokens": "total_output_tokens",
    "prompt tokens": "total_input_tokens",
}

GUIDELLM_KEYS: dict[str, tuple[str, str, float]] = {
    "TTFT median (ms)": ("time_to_first_token_ms", "median", 1.0),
    "TTFT P99 (ms)": ("time_to_first_token_ms", "p99", 1.0),
    "TPOT mean (ms)": ("time_per_output_token_ms", "mean", 1.0),
    "gap mean (ms)": ("inter_token_latency_ms", "mean", 1.0),
    "E2E median (ms)": ("request_latency", "median", 1000.0),
    "requests/s": ("requests_per_second", "mean", 1.0),
    "output tokens/s": ("output_tokens_per_second", "mean", 1.0),
    "output tokens": ("output_token_count", "total_sum", 1.0),
    "prompt tokens": ("prompt_token_count", "total_sum", 1.0),
}

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Job:
    """What every tester is asked to do.

    Attributes:
        url: of the server.
        model: its name there.
        folder: for files.
        requests: how many.
        tokens: of each answer.
        concurrency: requests in flight; 0 = by rate.
        rate: requests per second, at even distances.
    """

    url: str
    model: str
    folder: Path
    requests: int
    tokens: int
    concurrency: int
    rate: float


def write_prompts(job: Job) -> None:
    """Writes the same prompts in the form of each tester."""
    texts = [f"What is {number} + {number % 7}, and what is {number % 11} + 1?" for number in range(job.requests)]
    lines = [
        json.dumps({"prompt": text, "max_tokens": job.tokens, "output_tokens_count": job.tokens}) for text in texts
    ]
    (job.folder / "prompts.jsonl").write_text("\n".join(lines))
    answer = "word " * 8
    talks = [{"conversations": [{"value": text}, {"value": answer}]} for text in texts]
    (job.folder / "sharegpt.json").write_text(json.dumps(talks))


def commands(job: Job, root: Path) -> dict[str, list[str]]:
    """Returns the command line of every tester for the same load."""
    prompts, tokenizer = str(job.folder / "prompts.jsonl"), str(model_path())
    ours = [sys.executable, "-m", "vllm_mxext.tools.performance_tester", "--server-url", job.url, "--model", job.model]
    ours += ["--prompts-file", prompts, "--num-requests", str(job.requests), "--ignore-eos", "--temperature", "0"]
    ours += ["--no-save", "--no-keep-history", "--no-server-metrics", "--json", str(job.folder / "ours.json")]
    vllm = [str(root / "vllm/env/bin/python"), str(PEERS / "vllm_tester_worker.py"), "--backend", "openai-chat"]
    vllm += ["--base-url", job.url, "--endpoint", "/v1/chat/completions", "--model", job.model]
    vllm += ["--tokenizer", tokenizer, "--dataset-name", "sharegpt", "--dataset-path"]
    vllm += [str(job.folder / "sharegpt.json"), "--sharegpt-output-len", str(job.tokens), "--disable-shuffle"]
    vllm += ["--num-prompts", str(job.requests), "--ignore-eos", "--temperature", "0", "--disable-tqdm"]
    vllm += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--save-result", "--result-dir", str(job.folder)]
    vllm += ["--result-filename", "vllm.json"]
    backend = f"kind=openai_http,target={job.url},model={job.model},validate_backend=false"
    guidellm = [str(root / "guidellm/env/bin/guidellm"), "run", "--backend", backend, "--disable-console-interactive"]
    guidellm += ["--constraint", f"kind=max_requests,count={job.requests}"]
    guidellm += ["--data", f"kind=json_file,path={prompts}"]
    guidellm += ["--output", f"kind=json,path={job.folder / 'guidellm.json'}"]
    if job.concurrency:
        ours += ["--concurrent-requests", str(job.concurrency)]
        vllm += ["--max-concurrency", str(job.concurrency)]
        guidellm += ["--profile", f"kind=concurrent,streams={job.concurrency}"]
    else:
        # At even distances: drawn ones would be others for each tester.
        ours += ["--request-rate", str(job.rate), "--burstiness", "inf"]
        vllm += ["--request-rate", str(job.rate), "--burstiness", "inf"]
        guidellm += ["--profile", f"kind=constant,rate={job.rate}"]
    return {"ours": ours, "vllm": vllm, "guidellm": guidellm}


def run(command: list[str], name: str) -> str:
    """Runs a tester, or its formulas, and returns its last line."""
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    if name != "ours":
        del environ["PYTHONPATH"]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    # Ours ends with 4 where the client was held up by what else the machine does.
    if done.returncode not in ((0, 4) if name == "ours" else (0,)):
        raise SystemExit(f"{name} ended with code {done.returncode}: {(done.stderr or done.stdout)[-2000:]}")
    return (done.stdout.strip().splitlines() or [""])[-1]


def own_figures(figures: StageFigures, compat: str) -> Figures:
    """Returns our figures under the names of the table."""
    latencies = figures.latencies
    gap = latencies.token_gap if compat == "guidellm" else latencies.chunk_gap
    assert latencies.ttft is not None
    assert latencies.tpot is not None
    assert latencies.e2e is not None
    assert gap is not None
    assert figures.prompt_tokens is not None
    return {
        "TTFT median (ms)": latencies.ttft.median * 1000,
        "TTFT P99 (ms)": latencies.ttft.p99 * 1000,
        "TPOT mean (ms)": latencies.tpot.mean * 1000,
        "gap mean (ms)": gap.mean * 1000,
        "E2E median (ms)": latencies.e2e.median * 1000,
        "requests/s": figures.requests_per_s,
        "output tokens/s": figures.output_tokens_per_s,
        "output tokens": figures.output_tokens,
        "prompt tokens": figures.prompt_tokens,
    }


def peer_figures(name: str, folder: Path) -> Figures:
    """Returns what a peer has written."""
    data = json.loads((folder / f"{name}.json").read_text())
    if name == "vllm":
        return {figure: data[key] for figure, key in VLLM_KEYS.items()}
    figures = {}
    for figure, (key, point, unit) in GUIDELLM_KEYS.items():
        summary = data["benchmarks"][0]["metrics"][key]["successful"]
        figures[figure] = (summary["percentiles"] if point in summary["percentiles"] else summary)[point] * unit
    return figures


def truth(served: list[dict[str, Any]]) -> RunResult:
    """Returns the mock server's notes as a run: when it had a request, when it handed the answer to the system."""
    records = []
    for one in served:
        received = one["received_s"]
        record = RequestRecord(
            request_id=str(one["number"]),
            stage=0,
            is_warmup=False,
            scheduled_s=None,
            sent_s=received,
            ended_s=one["ended_s"],
            chunk_times_s=tuple(one["texts_s"]),
            empty_times_s=(received + (BEHAVIOUR.role_chunk_s or 0.0), one["ended_s"]),
            output_tokens=one["num_tokens"],
        )
        records.append(record)
    begin = min(record.sent_s for record in records)
    return RunResult("", {}, {}, (Stage("", "A", 1, None, begin, begin, begin),), tuple(records))


def compared(job: Job, root: Path, is_mock: bool) -> dict[str, Figures]:
    """Runs the testers one after the other and returns the columns of the table."""
    write_prompts(job)
    columns: dict[str, Figures] = {}
    for name, command in commands(job, root).items():
        before = num_served(job) if is_mock else 0
        run(command, name)
        result = RunResult.read(job.folder / "ours.json")
        compat = "own" if name == "ours" else name
        if is_mock:
            own = own_figures(stage_figures(truth(served(job)[before:]), 0, compat=compat), compat)
            columns[f"server, {compat}"] = {key: value for key, value in own.items() if key != "prompt tokens"}
        columns[f"ours, {compat}"] = own_figures(stage_figures(result, 0, compat=compat), compat)
        if name != "ours":
            columns[name] = peer_figures(name, job.folder)
    return columns


def served(job: Job) -> list[dict[str, Any]]:
    """Returns what the mock server has noted so far."""
    notes: list[dict[str, Any]] = httpx.get(f"{job.url}/mock/records", trust_env=False, timeout=60).json()
    return notes


def num_served(job: Job) -> int:
    """Returns how many requests the mock server has had."""
    return len(served(job))


def formula_difference(job: Job, root: Path) -> float:
    """Returns the largest relative difference between `--compat` and the peers' own code on the same times.

    A rate of guidellm lacks up to 0.1 ms of the duration, within which it takes events for one; that is allowed for.
    """
    result, largest = RunResult.read(job.folder / "ours.json"), 0.0
    scripts = {
        "vllm": [str(root / "vllm/env/bin/python"), str(PEERS / "vllm_tester_worker.py"), "figures"],
        "guidellm": [str(root / "guidellm/env/bin/python"), str(PEERS / "guidellm_tester_worker.py")],
    }
    for compat, command in scripts.items():
        figures = stage_figures(result, 0, compat=compat)
        for key, theirs in json.loads(run([*command, str(job.folder / "ours.json")], compat)).items():
            name, _, point = key.partition(" ")
            ours = getattr(getattr(figures.latencies, name), point) if point else getattr(figures, name)
            slack = 1e-4 / figures.duration_s if compat == "guidellm" and not point else 0.0
            largest = max(largest, abs(ours / theirs - 1) - slack)
    return largest


@contextlib.contextmanager
def mock_server(behaviour: Behaviour) -> Iterator[str]:
    """Runs the mock server as a process and yields its address."""
    command = [sys.executable, "-m", "tests.bench_servers.mock_server", "--behaviour", json.dumps(asdict(behaviour))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def take_cores(*, first_half: bool) -> None:
    """Binds this process, and what it starts from now on, to one half of the cores."""
    half = len(CORES) // 2
    if half:
        os.sched_setaffinity(0, CORES[:half] if first_half else CORES[half:])


@contextlib.contextmanager
def server(name: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Runs a server and yields its address and the name of its model."""
    take_cores(first_half=True)
    if name == "mock":
        with mock_server(BEHAVIOUR) as url:
            take_cores(first_half=False)
            yield url, "m"
    else:
        with ServerProcess(OUR_SERVER, folder / "server.log") as process:
            process.wait_for()
            take_cores(first_half=False)
            yield process.url, name


def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Prints a table per server and load, and returns medians and ranges."""
    results: dict[str, Any] = {"formula_difference": 0.0}
    loads = {f"{arguments.concurrency} at a time": (arguments.concurrency, 0.0)}
    loads[f"{arguments.rate:g} requests/s"] = (0, arguments.rate)
    for name in arguments.servers:
        with server(name, folder) as (url, model):
            jobs = {
                load: Job(url, model, folder, arguments.requests, arguments.tokens, *values)
                for load, values in loads.items()
            }
            rounds: dict[str, list[dict[str, Figures]]] = {load: [] for load in jobs}
            for number in range(arguments.rounds):
                for load, job in jobs.items():
                    rounds[load].append(compared(job, arguments.root, name == "mock"))
                    if number == 0:
                        difference = formula_difference(job, arguments.root)
                        results["formula_difference"] = max(results["formula_difference"], difference)
                print(f"  {name}: {number + 1}/{arguments.rounds}", flush=True)
        for load, runs in rounds.items():
            print(f"\n{name}, {load}, {arguments.requests} requests of {arguments.tokens} tokens\n")
            print(table(runs))
            results[f"{name}, {load}"] = summary(runs)
    print(f"\nlargest difference between --compat and the peers' own code: {results['formula_difference']:.1e}")
    return results


def summary(runs: list[dict[str, Figures]]) -> dict[str, dict[str, dict[str, float]]]:
    """Returns column -> figure -> median, least and greatest of the rounds."""
    points: dict[str, Callable[[list[float]], float]] = {"median": statistics.median, "min": min, "max": max}
    return {
        column: {
            figure: {name: round(point([run[column][figure] for run in runs]), 4) for name, point in points.items()}
            for figure in figures
        }
        for column, figures in runs[0].items()
    }


def table(runs: list[dict[str, Figures]]) -> str:
    """Returns the medians with their ranges, figures as rows."""
    columns = summary(runs)

    def cell(points: dict[str, float] | None) -> str:
        if points is None:
            return ""
        return f"{points['median']:.5g} ({points['min']:.4g}..{points['max']:.4g})"

    rows = [(figure, *(cell(one.get(figure)) for one in columns.values())) for figure in VLLM_KEYS]
    return format_table(("figure", *columns), rows)


def overhead(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Prints what a request and an event cost each tester: the differences of processor time between three runs."""
    streams, few, many, tokens = arguments.streams, arguments.streams, 2048, 32
    shapes = ((few, 1), (many, 1), (many, tokens))
    seconds: dict[str, list[list[float]]] = {name: [] for name in TESTERS}
    with mock_server(FAST) as url:
        for number in range(arguments.rounds):
            for name, runs in seconds.items():
                runs.append([])
                for requests, length in shapes:
                    job = Job(url, "m", folder, requests, length, streams, 0.0)
                    write_prompts(job)
                    begin = children_cpu_s()
                    run(commands(job, arguments.root)[name], name)
                    runs[-1].append(children_cpu_s() - begin)
            print(f"  {number + 1}/{arguments.rounds}", flush=True)
    results: dict[str, Any] = {}
    for name, runs in seconds.items():
        events = statistics.median((long - short) / (many * (tokens - 1)) for _, short, long in runs)
        requests_s = statistics.median((short - start) / (many - few) for start, short, _ in runs) - events
        start_s = statistics.median(start for start, _, _ in runs)
        results[name] = {"event_us": events * 1e6, "request_us": requests_s * 1e6, "start_s": start_s}
    header = ("tester", "CPU us per event", "CPU us per request", "CPU s to start")
    print(format_table(header, [(name, *figures.values()) for name, figures in results.items()]))
    return results


def children_cpu_s() -> float:
    """Returns the processor time of all ended children and theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    """Reads the arguments, measures and reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, default=Path("build/peers"), help="as in make_environments.py")
    parser.add_argument("--servers", nargs="+", default=SERVERS, choices=SERVERS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--overhead", action="store_true", help="processor time of the testers instead")
    parser.add_argument("--streams", type=int, default=64, help="requests in flight with --overhead")
    parser.add_argument("--output", type=Path, help="file for the JSON object")
    arguments = parser.parse_args()
    arguments.root = arguments.root.absolute()
    with tempfile.TemporaryDirectory() as folder:
        results = (overhead if arguments.overhead else compare)(arguments, Path(folder))
    names = ("rounds", "streams") if arguments.overhead else ("rounds", "requests", "tokens", "concurrency", "rate")
    config = {name: getattr(arguments, name) for name in names}
    if CORES:
        os.sched_setaffinity(0, CORES)
    line = json_line("tester_peers", config, results)
    if arguments.output:
        arguments.output.write_text(line + "\n")
    print(line)
    return 0 if results.get("formula_difference", 0.0) < 1e-6 else 1


if __name__ == "__main__":
    sys.exit(main())
