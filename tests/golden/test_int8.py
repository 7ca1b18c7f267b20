"""`--quantization int8`: close to the unquantised model, equal on every kernel path, independent of the schedule."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.golden.comparison import make_prompts
from tests.golden.conftest import Checkpoint
from tests.golden.engine import Schedule, kernel_sets, serve
from tests.golden.models import MODELS, TinyModel
from vllm_mxext.native.kernels.library import TORCH_ISA

LOGIT_ERROR = 0.08
"""Norm of the logits' difference from the unquantised model over the norm of its logits, for the tiny random models."""

by_model = pytest.mark.parametrize(
    "model", [model for model in MODELS if model.name in ("llama", "qwen2", "qwen3")], ids=lambda model: model.name
)
by_kernels = pytest.mark.parametrize("kernels", kernel_sets())
_COMPILED = [name for name in kernel_sets() if name != TORCH_ISA]


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result - expected).norm() / expected.norm())


@pytest.mark.promise("INT8-1")
@by_model
@by_kernels
def test_first_logits_are_close_to_the_unquantised_models(
    model: TinyModel, kernels: str, checkpoint: Checkpoint
) -> None:
    folder = checkpoint(model, "float32")
    prompts = [replace(prompt, num_tokens=1) for prompt in make_prompts((3, 17, 60))]
    plain = serve(folder, "float32", prompts, kernels=kernels).answers
    quantised = serve(folder, "float32", prompts, kernels=kernels, quantization="int8").answers
    for exact, answer in zip(plain, quantised, strict=True):
        assert 0 < relative_error(answer.stacked, exact.stacked) < LOGIT_ERROR


@pytest.mark.promise("INT8-1")
@by_model
@pytest.mark.parametrize("kernels", _COMPILED)
def test_compiled_kernels_give_the_reference_paths_logits(
    model: TinyModel, kernels: str, checkpoint: Checkpoint
) -> None:
    folder = checkpoint(model, "float32")
    prompts = [replace(prompt, num_tokens=1) for prompt in make_prompts((3, 17, 60))]
    ours = serve(folder, "float32", prompts, kernels=kernels, quantization="int8").answers
    theirs = serve(folder, "float32", prompts, kernels=TORCH_ISA, quantization="int8").answers
    for answer, expected in zip(ours, theirs, strict=True):
        # One bit of float32 can move an activation to the next of 255 steps, which then spreads.
        assert relative_error(answer.stacked, expected.stacked) < LOGIT_ERROR / 3


@pytest.mark.promise("INT8-1", "GOLD-2")
@by_model
@pytest.mark.parametrize("kernels", _COMPILED)
@pytest.mark.parametrize(
    "schedule",
    [
        Schedule("chunked", budget=7, max_num_seqs=5),
        Schedule("prefix_hits", budget=10, enable_prefix_caching=True, runs=2),
        Schedule("preemption", num_blocks=10, budget=20, enable_prefix_caching=True),
    ],
    ids=lambda schedule: schedule.name,
)
def test_tokens_and_logits_do_not_depend_on_the_schedule(
    model: TinyModel, kernels: str, schedule: Schedule, checkpoint: Checkpoint
) -> None:
    folder, prompts = checkpoint(model, "bfloat16"), make_prompts((14, 15, 33, 50), num_tokens=40)
    served = serve(folder, "bfloat16", prompts, schedule, kernels=kernels, quantization="int8")
    for prompt, answer in zip(prompts, served.answers, strict=True):
        alone = serve(folder, "bfloat16", [prompt], kernels=kernels, quantization="int8").answers[0]
        assert answer.token_ids == alone.token_ids
        assert torch.equal(answer.stacked, alone.stacked)
