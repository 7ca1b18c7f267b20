"""A core process of the native engine that a test can hold: however late the test comes, its streams are still open."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vllm_mxext.config.engine import EngineConfig
from vllm_mxext.native import core_process
from vllm_mxext.native.core_client import ProcessCoreClient
from vllm_mxext.native.engine_core import EngineCore, ProgressReport
from vllm_mxext.native.protocol import EngineCoreOutputs, EngineCoreRequest


class Hold:
    """Says which core is to be held.

    Args:
        file: how cores hear of it; nobody else may use it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def spawner(self, config: EngineConfig) -> Callable[[], ProcessCoreClient]:
        """Returns what makes clients of cores that can be held, and that compute the same in whatever batch."""
        config = replace(config, device=replace(config.device, is_deterministic=True))
        command = (sys.executable, "-m", "tests.held_core_process", str(self._file))
        return lambda: ProcessCoreClient(config, command=command)

    def begin(self, process_id: int, num_requests: int, num_tokens: int) -> None:
        """Lets a core compute from when it has so many requests until one of them has so many tokens.

        It answers messages all the time, and the core that follows it is not held.
        """
        written = self._file.with_suffix(".new")
        written.write_text(f"{process_id} {num_requests} {num_tokens}")
        written.replace(self._file)


def hold(core: EngineCore, file: Path) -> None:
    """Makes a core compute only when the file allows it."""
    add_request, step = core.add_request, core.step
    num_tokens: dict[str, int] = {}

    def is_held() -> bool:
        try:
            process_id, num_requests, limit = map(int, file.read_text().split())
        except FileNotFoundError:
            return False
        is_allowed = len(num_tokens) >= num_requests and max(num_tokens.values()) < limit
        return process_id == os.getpid() and not is_allowed

    def add_and_count(request: EngineCoreRequest) -> None:
        num_tokens[request.request_id] = 0
        add_request(request)

    def step_if_allowed() -> EngineCoreOutputs:
        if is_held():
            time.sleep(0.005)
            if core._adapters is not None:
                core._adapters.advance(is_idle=True)
            return EngineCoreOutputs()
        outputs = step()
        for output in outputs.outputs:
            num_tokens[output.request_id] += len(output.new_token_ids)
            if output.finish_reason is not None:
                del num_tokens[output.request_id]
        return outputs

    core.add_request = add_and_count  # type: ignore[method-assign]
    core.step = step_if_allowed  # type: ignore[method-assign]


def build(config: EngineConfig, report: ProgressReport) -> EngineCore:
    """Builds the native engine."""
    from vllm_mxext.native.engine_builder import build_engine_core

    core = build_engine_core(config, report)
    hold(core, file)
    return core


if __name__ == "__main__":
    file = Path(sys.argv.pop(1))
    core_process.main(lambda: build)
