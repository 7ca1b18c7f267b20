"""A core process with a `HashRunner`; its first argument says what is wrong with it."""

from __future__ import annotations

import os
import signal
import sys

from tests.engine_fakes import make_core
from vllm_mxext.config.engine import EngineConfig
from vllm_mxext.errors import ConfigError
from vllm_mxext.native import core_process
from vllm_mxext.native.engine_core import EngineCore, ProgressReport


def build(config: EngineConfig, report: ProgressReport) -> EngineCore:
    report("loading", 0.5)
    match fault:
        case "config":
            raise ConfigError("The model does not fit; use a smaller one.")
        case "crash":
            raise ValueError("shapes differ")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
    report("warming up", 1.0)
    return make_core(config)


if __name__ == "__main__":
    fault = sys.argv.pop(1)
    core_process.main(lambda: build)
