"""Int8 weights and int8 KV cache: close to the plain model, equal on every kernel path, whatever the schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from tests.golden.comparison import make_prompts, relative_error
from tests.golden.conftest import Checkpoint
from tests.golden.engine import Schedule, kernel_sets, serve
from tests.golden.models import MODELS, TinyModel
from vllm_mxext.native.kernels.library import TORCH_ISA


@dataclass(frozen=True)
class Form:
    """What is kept in eight bits.

    Attributes:
        arguments: of the engine.
        models: names of those it is tested on.
        logit_error: norm of the logits' difference from the plain model over the norm of its logits, at most.
        path_error: the same for compiled kernels against the reference path: one bit of float32 can move an activation
            to the next of 255 steps, which then spreads, and compiled attention rounds the softmax's weights too.
        dtypes: in which schedules are compared.
    """

    arguments: Mapping[str, Any]
    models: tuple[str, ...]
    logit_error: float
    path_error: float
    dtypes: tuple[str, ...]


WEIGHTS = Form({"quantization": "int8"}, ("llama", "qwen2", "qwen3"), 0.08, 0.08 / 3, ("bfloat16",))
CACHE = Form(
    {"kv_cache_dtype": "int8"}, ("llama_biases_mqa", "mistral_window", "qwen3"), 0.05, 0.05 / 2, ("bfloat16", "float16")
)

_COMPILED = [name for name in kernel_sets() if name != TORCH_ISA]


def cases(form: Form, promise: str) -> list[Any]:
    return [
        pytest.param(form, model, id=f"{promise}-{model.name}", marks=pytest.mark.promise(promise))
        for model in MODELS
        if model.name in form.models
    ]


by_case = pytest.mark.parametrize(("form", "model"), cases(WEIGHTS, "INT8-1") + cases(CACHE, "KV8-1"))


@by_case
@pytest.mark.parametrize("kernels", kernel_sets())
def test_first_logits_are_close_to_the_plain_models(
    form: Form, model: TinyModel, kernels: str, checkpoint: Checkpoint
) -> None:
    folder = checkpoint(model, "float32")
    prompts = [replace(prompt, num_tokens=1) for prompt in make_prompts((3, 17, 60))]
    plain = serve(folder, "float32", prompts, kernels=kernels).answers
    quantised = serve(folder, "float32", prompts, kernels=kernels, **form.arguments).answers
    for exact, answer in zip(plain, quantised, strict=True):
        assert 0 < relative_error(answer.stacked, exact.stacked) < form.logit_error


@by_case
@pytest.mark.parametrize("kernels", _COMPILED)
def test_compiled_kernels_give_the_reference_paths_logits(
    form: Form, model: TinyModel, kernels: str, checkpoint: Checkpoint
) -> None:
    folder = checkpoint(model, "float32")
    prompts = [replace(prompt, num_tokens=1) for prompt in make_prompts((3, 17, 60))]
    ours = serve(folder, "float32", prompts, kernels=kernels, **form.arguments).answers
    theirs = serve(folder, "float32", prompts, kernels=TORCH_ISA, **form.arguments).answers
    for answer, expected in zip(ours, theirs, strict=True):
        assert relative_error(answer.stacked, expected.stacked) < form.path_error


@pytest.mark.promise("GOLD-2")
@by_case
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
    form: Form, model: TinyModel, kernels: str, schedule: Schedule, checkpoint: Checkpoint
) -> None:
    for dtype in form.dtypes:
        folder, prompts = checkpoint(model, dtype), make_prompts((14, 15, 33, 50), num_tokens=40)
        served = serve(folder, dtype, prompts, schedule, kernels=kernels, **form.arguments)
        for prompt, answer in zip(prompts, served.answers, strict=True):
            alone = serve(folder, dtype, [prompt], kernels=kernels, **form.arguments).answers[0]
            assert answer.token_ids == alone.token_ids
            assert torch.equal(answer.stacked, alone.stacked)
