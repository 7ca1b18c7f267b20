"""Engines in processes of their own: tasks, answers, and silence between them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import engine_pool
import psutil
import pytest
from engine_pool import EnginePool
from engines import DEFAULT_ENGINES, ENGINES, Comparison, Room
from offline import figures, room_for
from peers.process import WORKERS, Measurement, WorkerProcess

from vllm_mxext.bench.workload import Workload
from vllm_mxext.builtin import model_path
from vllm_mxext.registry.processes import identify, wait_for_end

FAKE = f"""
import sys
sys.path.insert(0, {str(WORKERS)!r})
from protocol import Engine, serve

def load(settings):
    print("noise of a library")
    def generate(prompts, output_len):
        if settings.get("dies"):
            sys.exit(3)
        return [[prompt[0]] * (output_len + settings.get("extra", 0)) for prompt in prompts]
    return Engine(generate, logits=lambda prompt: [1.0, 2.0, 6.0] if settings.get("shows") else None)

serve(load)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    script = tmp_path / "fake_worker.py"
    script.write_text(FAKE, encoding="utf-8")
    workers: list[WorkerProcess] = []

    def start(**settings: Any) -> WorkerProcess:
        workers.append(WorkerProcess(Path(sys.executable), str(script), settings, {}, 100))
        return workers[-1]

    yield start
    for worker in workers:
        if psutil.pid_exists(worker.pid):
            worker.close()


def test_a_worker_generates_what_it_is_given(start: Any) -> None:
    workload = Workload(2, 3, 4)
    run = start().measure(workload, 5)
    assert run.seconds > 0
    assert run.first_tokens == tuple(prompt[0] for prompt in workload.prompts(range(100), 5))


def wait_until_stopped(worker: WorkerProcess) -> None:
    while psutil.Process(worker.pid).status() != psutil.STATUS_STOPPED:
        assert psutil.pid_exists(worker.pid)


def test_a_worker_ends_with_the_benchmark(tmp_path: Path) -> None:
    (tmp_path / "fake_worker.py").write_text(FAKE, encoding="utf-8")
    code = (
        "import sys; from pathlib import Path; from peers.process import WorkerProcess\n"
        f"worker = WorkerProcess(Path(sys.executable), {str(tmp_path / 'fake_worker.py')!r}, {{}}, {{}}, 100)\n"
        "print(worker.pid)"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    worker = identify(int(output.stdout))
    assert worker is None or wait_for_end(worker, 60)


def test_between_tasks_a_worker_is_stopped(start: Any) -> None:
    worker = start()
    wait_until_stopped(worker)
    worker.measure(Workload(1, 2, 1), 0)
    wait_until_stopped(worker)
    assert worker.peak_bytes() >= psutil.Process(worker.pid).memory_info().rss > 0


def test_a_worker_that_generates_another_number_of_tokens_is_refused(start: Any) -> None:
    with pytest.raises(RuntimeError, match=r"generated \[5\] tokens for 1x\(2->4\)"):
        start(extra=1).measure(Workload(1, 2, 4), 0)


def test_a_worker_that_ends_is_reported(start: Any) -> None:
    with pytest.raises(RuntimeError, match="exit code 3"):
        start(dies=True).measure(Workload(1, 2, 4), 0)


def test_logits_are_centred(start: Any) -> None:
    assert start(shows=True).logits([1]).tolist() == [-2.0, -1.0, 3.0]


@pytest.mark.e2e
def test_our_worker_serves_the_builtin_model(tmp_path: Path) -> None:
    room = Room(kv_tokens=2048, max_model_len=128, max_num_seqs=4)
    comparison = Comparison(model_path(), tmp_path, 1, room)
    worker = comparison.start("vllm_mxext", enable_prefix_caching=True)
    try:
        assert len(worker.measure(Workload(2, 48, 4, shared_len=32), 0).first_tokens) == 2
        logits = worker.logits([1, 2, 3])
    finally:
        worker.close()
    assert logits is not None
    assert logits.shape == (comparison.vocab_size,)


def test_a_missing_engine_comes_with_the_command_that_makes_it(tmp_path: Path) -> None:
    comparison = Comparison(model_path(), tmp_path, 1, Room(1, 1, 1))
    assert comparison.missing("vllm_mxext") is None
    command = comparison.missing("llamacpp-q8_0")
    assert command is not None
    assert f"make_environments.py llamacpp --root {tmp_path}" in command
    assert set(DEFAULT_ENGINES) < set(ENGINES)


class FakeWorker:
    """A worker that notes its end."""

    load_s = 1.0
    load_peak_bytes = 5

    def __init__(self, ended: list[str], name: str) -> None:
        self._ended, self._name = ended, name

    def measure(self, workload: Workload, seed: int) -> Measurement:
        return Measurement(1.0, (0,))

    def peak_bytes(self) -> int:
        return 7

    def close(self) -> None:
        self._ended.append(self._name)


def pool_with(available_bytes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[str]]:
    ended: list[str] = []
    comparison = SimpleNamespace(
        kv_token_bytes=0,
        model=lambda name: tmp_path,
        start=lambda name, enable_prefix_caching: FakeWorker(ended, f"{name} {enable_prefix_caching}"),
    )
    monkeypatch.setattr(engine_pool, "usable_memory", lambda: SimpleNamespace(available_bytes=available_bytes.pop(0)))
    return EnginePool(comparison), ended  # type: ignore[arg-type]


def test_engines_stay_while_there_is_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, ended = pool_with([2**40] * 9, tmp_path, monkeypatch)
    for name in ("a", "b", "a"):
        pool.measure(name, Workload(1, 1, 1), 0)
    assert ended == []
    assert pool.figures()["a"] == {"load_s": 1.0, "load_peak_bytes": 5, "peak_bytes": 7}
    pool.close()
    assert sorted(ended) == ["a False", "b False"]


def test_the_longest_unused_engine_ends_when_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, ended = pool_with([2**40] * 2 + [0, 2**40], tmp_path, monkeypatch)
    for name in ("a", "b", "a", "c"):
        pool.measure(name, Workload(1, 1, 1), 0)
    assert ended == ["b False"]


def test_a_workload_with_a_shared_prefix_gets_an_engine_that_caches_prefixes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, ended = pool_with([2**40] * 9, tmp_path, monkeypatch)
    pool.measure("a", Workload(1, 2, 1), 0)
    pool.measure("a", Workload(1, 2, 1, shared_len=1), 0)
    pool.close()
    assert sorted(ended) == ["a False", "a True"]


def test_every_engine_has_room_for_the_largest_workload() -> None:
    room = room_for([Workload(32, 256, 64), Workload(1, 4096, 128)])
    assert room.kv_tokens >= 32 * 320
    assert room.max_model_len >= 4224
    assert room.max_num_seqs == 32


def test_figures_have_rates_and_agreement_with_the_first_engine() -> None:
    runs = [Measurement(2.0, (1, 2)), Measurement(4.0, (1, 3)), Measurement(3.0, (1, 2))]
    reference = [Measurement(1.0, (1, 2))] * 3
    entry = figures(Workload(2, 30, 6), runs, reference)
    assert (entry["output_tokens_per_s"], entry["prompt_tokens_per_s"]) == (4.0, 20.0)
    assert entry["equal_first_tokens"] == pytest.approx(5 / 6, abs=1e-3)
    assert json.dumps(entry)
