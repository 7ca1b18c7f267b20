"""The int8 KV cache: close to the plain one, the same on every kernel path, and independent of the schedule."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.golden.comparison import make_prompts
from tests.golden.conftest import Checkpoint
from tests.golden.engine import Schedule, kernel_sets, serve
from tests.golden.models import MODELS, TinyModel
from vllm_mxext.native.kernels.library import TORCH_ISA

LOGIT_ERROR = 0.05
"""Norm of the logits' difference from a plain cache over the norm of the logits, for the tiny random models."""

by_model = pytest.mark.parametrize(
    "model",
    [model for model in MODELS if model.name in ("llama_biases_mqa", "mistral_window", "qwen3")],
    ids=lambda model: model.name,
)
by_kernels = pytest.mark.parametrize("kernels", kernel_sets())
_COMPILED = [name for name in kernel_sets() if name != TORCH_ISA]


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result - expected).norm() / expected.norm())


@pytest.mark.promise("KV8-1")
@by_model
@by_kernels
def test_first_logits_are_close_to_those_of_a_plain_cache(
    model: TinyModel, kernels: str, checkpoint: Checkpoint
) -> None:
    folder = checkpoint(model, "float32")
    prompts = [replace(prompt, num_tokens=1) for prompt in make_prompts((3, 17, 60))]
    plain = serve(folder, "float32", prompts, kernels=kernels).answers
    quantised = serve(folder, "float32", prompts, kernels=kernels, kv_cache_dtype="int8").answers
    for exact, answer in zip(plain, quantised, strict=True):
        assert 0 < relative_error(answer.stacked, exact.stacked) < LOGIT_ERROR


@pytest.mark.promise("KV8-1")
@by_model
@pytest.mark.parametrize("kernels", _COMPILED)
def test_compiled_kernels_give_the_reference_paths_logits(
    model: TinyModel, kernels: str, checkpoint: Checkpoint
) -> None:
    folder = checkpoint(model, "float32")
    prompts = [replace(prompt, num_tokens=1) for prompt in make_prompts((3, 17, 60))]
    ours = serve(folder, "float32", prompts, kernels=kernels, kv_cache_dtype="int8").answers
    theirs = serve(folder, "float32", prompts, kernels=TORCH_ISA, kv_cache_dtype="int8").answers
    for answer, expected in zip(ours, theirs, strict=True):
        # The compiled kernels also round the softmax's weights to 8 bits.
        assert relative_error(answer.stacked, expected.stacked) < LOGIT_ERROR / 2


@pytest.mark.promise("KV8-1", "GOLD-2")
@by_model
@pytest.mark.parametrize("kernels", _COMPILED)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
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
    model: TinyModel, kernels: str, dtype: str, schedule: Schedule, checkpoint: Checkpoint
) -> None:
    folder, prompts = checkpoint(model, dtype), make_prompts((14, 15, 33, 50), num_tokens=40)
    served = serve(folder, dtype, prompts, schedule, kernels=kernels, kv_cache_dtype="int8")
    for prompt, answer in zip(prompts, served.answers, strict=True):
        alone = serve(folder, dtype, [prompt], kernels=kernels, kv_cache_dtype="int8").answers[0]
        assert answer.token_ids == alone.token_ids
        assert torch.equal(answer.stacked, alone.stacked)
