"""A core process with a `HashRunner`; its first argument says what is wrong with it, or that it has adapters alone."""

from __future__ import annotations

import os
import signal
import sys

from tests.engine_fakes import make_core
from vllm_mxext.config.engine import EngineConfig
from vllm_mxext.errors import ConfigError
from vllm_mxext.native import core_messages as messages
from vllm_mxext.native import core_process
from vllm_mxext.native.engine_core import EngineCore, ProgressReport
from vllm_mxext.native.protocol import AdapterKey, AdapterTier, AdapterUse


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


def serve_adapters(address: str) -> None:
    """Answers questions about adapters alone: `/none` cannot be read, and `/lethal` kills."""
    channel = core_process.FrontChannel(address)
    channel.send(messages.Hello(os.getpid()))
    known: dict[AdapterKey, AdapterUse] = {}
    while True:
        for message in channel.receive(core_process.IDLE_POLL_MS):
            match message:
                case messages.Start():
                    channel.send(messages.Ready(messages.CoreInfo(64, 4, "none")))
                case messages.LoadAdapter(call_id, spec, _):
                    if spec.path == "/lethal":
                        os.kill(os.getpid(), signal.SIGKILL)
                    error = "There is no folder '/none'." if spec.path == "/none" else None
                    if error is None:
                        known[spec.adapter_id, spec.generation] = AdapterUse(
                            spec.adapter_id, spec.generation, AdapterTier.HOST, 100
                        )
                    channel.send(messages.AdapterDone(call_id, error, list(known.values())))
                case messages.DropAdapter(call_id, adapter_id, generation):
                    del known[adapter_id, generation]
                    channel.send(messages.AdapterDone(call_id, None, list(known.values())))
                case messages.Stop():
                    channel.close()
                    return


if __name__ == "__main__":
    fault = sys.argv.pop(1)
    if fault == "adapters":
        core_process.exit_with_parent(sys.argv[1])
        serve_adapters(sys.argv[1])
    else:
        core_process.main(lambda: build)
