"""The loop of the core process, over a channel that is not a socket."""

from __future__ import annotations

from collections.abc import Sequence

from tests.engine_fakes import make_core
from vllm_mxext.native import core_messages as messages
from vllm_mxext.native.core_process import serve
from vllm_mxext.native.protocol import EngineCoreRequest
from vllm_mxext.sampling_params import SamplingParams


class ScriptedChannel:
    """Gives out lists of messages one after the other and keeps what is sent."""

    def __init__(self, *script: Sequence[messages.ToCore]) -> None:
        self._script = list(script)
        self.sent: list[messages.FromCore] = []

    def receive(self, timeout_ms: int) -> Sequence[messages.ToCore]:
        del timeout_ms
        return self._script.pop(0)

    def send(self, message: messages.FromCore) -> None:
        self.sent.append(message)


def test_a_core_without_work_says_that_it_is_alive() -> None:
    channel = ScriptedChannel([], [], [messages.Stop()])
    serve(channel, make_core(), lambda: True)
    assert channel.sent == [messages.Alive(), messages.Alive()]


def test_a_core_with_work_sends_outputs_instead() -> None:
    request = EngineCoreRequest("a", [1, 2, 3], SamplingParams(max_tokens=2, ignore_eos=True), seed=0)
    channel = ScriptedChannel([messages.AddRequests([request])], [], [messages.Stop()])
    serve(channel, make_core(), lambda: True)
    assert [type(message) for message in channel.sent] == [messages.StepOutputs] * 2


def test_an_orphaned_core_without_work_ends() -> None:
    channel = ScriptedChannel([])
    serve(channel, make_core(), lambda: False)
    assert channel.sent == []
