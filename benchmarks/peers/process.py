"""`WorkerProcess`: an engine in a process of its own, measured from here; it ends with this process."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from vllm_mxext.bench.server_process import peak_bytes
from vllm_mxext.bench.workload import Workload

WORKERS = Path(__file__).parent


@dataclass(frozen=True)
class Measurement:
    """One workload on one engine.

    Attributes:
        seconds: time it took.
        first_tokens: first output token of each request.
    """

    seconds: float
    first_tokens: tuple[int, ...]


class WorkerProcess:
    """Runs a worker script and gives it tasks; between them all its threads are stopped.

    Engines are loaded side by side and measured in turn. Some wait for work with threads that spin: an idle vLLM was
    seen to use a third of a core. Stopped processes use none.

    Args:
        python: interpreter of the engine's environment.
        worker: script in this folder.
        settings: what the script is started with; see `protocol.serve`.
        environ: environment variables beside this process's own.
        vocab_size: prompts are random ids below it.

    Attributes:
        load_s: seconds from the start of the process until it was ready.

    Raises:
        RuntimeError: the worker ended before it was ready.
    """

    def __init__(
        self, python: Path, worker: str, settings: Mapping[str, Any], environ: Mapping[str, str], vocab_size: int
    ) -> None:
        self._vocab_size = vocab_size
        self._name = worker
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [str(python), str(WORKERS / worker), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environ},
        )
        self._answer()
        self.load_s = time.perf_counter() - start
        self.load_peak_bytes = self.peak_bytes()
        self._signal(signal.SIGSTOP)

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    def measure(self, workload: Workload, seed: int) -> Measurement:
        """Generates a workload.

        Raises:
            RuntimeError: the worker ended, or generated another number of tokens.
        """
        prompts = workload.prompts(range(self._vocab_size), seed)
        answer = self._ask({"prompts": prompts, "output_len": workload.output_len})
        lengths = [len(tokens) for tokens in answer["tokens"]]
        if lengths != [workload.output_len] * workload.num_requests:
            raise RuntimeError(f"{self._name} generated {lengths} tokens for {workload}.")
        return Measurement(float(answer["seconds"]), tuple(tokens[0] for tokens in answer["tokens"]))

    def logits(self, prompt: list[int]) -> np.ndarray | None:
        """Returns the logits after a prompt, centred, `[vocab_size]` float32; None if the engine does not show them."""
        answer = self._ask({"logits_after": prompt})["logits"]
        if answer is None:
            return None
        values = np.frombuffer(base64.b64decode(answer), dtype=np.float32)
        centred: np.ndarray = values - values.mean()
        return centred

    def peak_bytes(self) -> int:
        """Returns the largest memory that was resident so far, of the worker and of processes it started, in all."""
        return sum(peak_bytes(process.pid) for process in self._family())

    def close(self) -> None:
        """Ends the worker, if it has not ended by itself."""
        assert self._process.stdin is not None
        if self._process.poll() is not None:
            return
        self._signal(signal.SIGCONT)
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _ask(self, task: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        print(json.dumps(task), file=self._process.stdin, flush=True)
        answer = self._answer()
        self._signal(signal.SIGSTOP)
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended with exit code {self._process.wait()}; its messages stand above.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _family(self) -> Iterable[psutil.Process]:
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]

    def _signal(self, number: int) -> None:
        for process in self._family():
            process.send_signal(number)
