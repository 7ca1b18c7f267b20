"""Mirostat goes on where it stood after preemption and after the engine process was replaced."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from tests.golden.comparison import make_prompts
from tests.golden.conftest import Checkpoint
from tests.golden.engine import Prompt, Schedule, kernel_sets, serve
from tests.golden.models import FAMILY_MODELS
from vllm_mxext.native.core.scheduler import Scheduler
from vllm_mxext.native.kernels.library import TORCH_ISA
from vllm_mxext.native.protocol import EngineCoreRequest
from vllm_mxext.sampling_params import SamplingParams

pytestmark = pytest.mark.promise("SAMP-6")

MODEL = FAMILY_MODELS[0]
TIGHT = Schedule("preemption", num_blocks=10, budget=64)
PARAMS = {
    version: SamplingParams(mirostat=version, mirostat_tau=2.5, mirostat_eta=0.6, max_tokens=50, ignore_eos=True)
    for version in (1, 2)
}
compiled = pytest.mark.parametrize("kernels", [name for name in kernel_sets() if name != TORCH_ISA])
versions = pytest.mark.parametrize("version", [1, 2])


def prompts(version: int) -> list[Prompt]:
    made = make_prompts((14, 15, 16, 13))
    return [replace(prompt, params=PARAMS[version], seed=index) for index, prompt in enumerate(made)]


@compiled
@versions
def test_preemption_changes_no_token(checkpoint: Checkpoint, kernels: str, version: int) -> None:
    folder = checkpoint(MODEL, "float32")
    alone = [serve(folder, "float32", [prompt], kernels=kernels).answers[0].token_ids for prompt in prompts(version)]
    crowded = serve(folder, "float32", prompts(version), TIGHT, kernels=kernels)
    assert crowded.num_preempted > 0
    assert [answer.token_ids for answer in crowded.answers] == alone


@compiled
@versions
def test_a_new_engine_goes_on_from_the_state_that_came_with_the_last_token(
    checkpoint: Checkpoint, kernels: str, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(MODEL, "float32")
    prompt = prompts(version)[0]
    whole = serve(folder, "float32", [prompt], kernels=kernels).answers[0]
    add_request = Scheduler.add_request
    for num_delivered in (1, 20):
        state = whole.sampler_states[num_delivered - 1]
        assert state is not None

        def resume(
            self: Scheduler, source: EngineCoreRequest, state: float = state, count: int = num_delivered
        ) -> None:
            delivered = whole.token_ids[:count]
            add_request(self, msgspec.structs.replace(source, output_token_ids=delivered, sampler_state=state))

        with monkeypatch.context() as patched:
            patched.setattr(Scheduler, "add_request", resume)
            rest = serve(folder, "float32", [prompt], kernels=kernels).answers[0]
        assert rest.token_ids == whole.token_ids[num_delivered:]
