"""`PeerProcess`: a peer in its own environment, measured from here; it ends with this process."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from vllm_mxext.bench.workload import Workload

WORKERS = Path(__file__).parent


class PeerProcess:
    """Runs a worker script and gives it workloads.

    Args:
        python: interpreter of the peer's environment.
        worker: script in this folder.
        arguments: of the script.
        vocab_size: prompts are random ids below it.

    Raises:
        RuntimeError: the worker ended before it was ready.
    """

    def __init__(self, python: Path, worker: str, arguments: list[str], vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._name = worker
        self._process = subprocess.Popen(
            [str(python), str(WORKERS / worker), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()  # it has loaded

    def measure(self, workload: Workload, seed: int) -> float:
        """Generates a workload and returns the seconds it took.

        Raises:
            RuntimeError: the worker ended, or generated another number of tokens.
        """
        assert self._process.stdin is not None
        prompts = workload.prompts(range(self._vocab_size), seed)
        print(json.dumps({"prompts": prompts, "output_len": workload.output_len}), file=self._process.stdin, flush=True)
        answer = self._answer()
        if answer["num_tokens"] != [workload.output_len] * workload.num_requests:
            raise RuntimeError(f"{self._name} generated {answer['num_tokens']} tokens for {workload}.")
        return float(answer["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended with exit code {self._process.wait()}; its messages stand above.")
        answer: dict[str, Any] = json.loads(line)
        return answer
