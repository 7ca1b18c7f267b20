"""Int4 checkpoints: close to transformers on the weights they stand for, whatever kernels, types and schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.golden.comparison import DTYPES, make_prompts, relative_error
from tests.golden.conftest import Checkpoint
from tests.golden.engine import Schedule, kernel_sets, serve
from tests.golden.models import TinyModel
from tests.golden.reference import Reference
from tests.int4_checkpoints import FORMATS, Int4Format, save_exact, save_int4
from vllm_mxext.config.engine import DType
from vllm_mxext.native.kernels.library import TORCH_ISA

LOGIT_ERROR = 0.05
"""Norm of the logits' difference over the norm of the exact ones: what int8 activations cost these tiny models."""

MODELS = (
    TinyModel("int4_llama", "Llama", {"intermediate_size": 128}),
    TinyModel("int4_qwen2", "Qwen2", {"intermediate_size": 128, "tie_word_embeddings": True}),
    TinyModel("int4_qwen3", "Qwen3", {"intermediate_size": 128, "head_dim": 32, "tie_word_embeddings": True}),
)

by_format = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
by_kernels = pytest.mark.parametrize("kernels", kernel_sets())
_COMPILED = [name for name in kernel_sets() if name != TORCH_ISA]

Int4Checkpoint = Callable[[TinyModel, Int4Format, str], tuple[Path, Path]]


@pytest.fixture(scope="session")
def int4_checkpoint(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Int4Checkpoint:
    """Folders of an int4 model, and of the float32 model it stands for."""
    base = tmp_path_factory.mktemp("int4")

    def make(model: TinyModel, form: Int4Format, dtype: str) -> tuple[Path, Path]:
        name = f"{model.name}-{form.name}-{dtype}"
        folders = base / name, base / f"{name}-exact"
        if not folders[0].exists():
            plain = checkpoint(model, dtype)
            save_exact(plain, folders[1], save_int4(plain, folders[0], form))
        return folders

    return make


@pytest.mark.promise("INT4-1")
@by_kernels
@by_format
def test_logits_and_greedy_tokens_are_those_of_the_dequantised_model(
    form: Int4Format, kernels: str, int4_checkpoint: Int4Checkpoint
) -> None:
    for model in MODELS:
        folder, exact = int4_checkpoint(model, form, "float32")
        prompts = make_prompts((3, 17, 60))
        reference = Reference(exact, torch.float32)
        answers = serve(folder, "float32", prompts, kernels=kernels).answers
        ours = torch.cat([answer.stacked for answer in answers])
        pairs = zip(prompts, answers, strict=True)
        truth = torch.cat([reference.logits(prompt.token_ids, answer.token_ids) for prompt, answer in pairs])
        assert 0 < relative_error(ours, truth) < LOGIT_ERROR
        top = truth.topk(2).values
        is_clear = top[:, 0] - top[:, 1] > 2 * (ours - truth).abs().amax(1)
        assert is_clear.sum() > len(truth) / 2
        assert torch.equal(ours.argmax(1)[is_clear], truth.argmax(1)[is_clear])


@pytest.mark.promise("INT4-1")
@by_kernels
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_nearly_as_close(dtype: DType, kernels: str, int4_checkpoint: Int4Checkpoint) -> None:
    assert dtype in DTYPES
    for form in (FORMATS[0], FORMATS[4]):
        folder, exact = int4_checkpoint(MODELS[2], form, dtype)
        prompts = make_prompts((3, 17, 60), num_tokens=1)
        reference = Reference(exact, torch.float32)
        answers = serve(folder, dtype, prompts, kernels=kernels).answers
        for prompt, answer in zip(prompts, answers, strict=True):
            truth = reference.logits(prompt.token_ids, answer.token_ids)
            assert 0 < relative_error(answer.stacked, truth) < 1.5 * LOGIT_ERROR


@pytest.mark.promise("INT4-1")
@by_format
@pytest.mark.parametrize("kernels", _COMPILED)
def test_compiled_kernels_give_the_reference_paths_logits(
    form: Int4Format, kernels: str, int4_checkpoint: Int4Checkpoint
) -> None:
    folder, _ = int4_checkpoint(MODELS[0], form, "float32")
    prompts = [replace(prompt, num_tokens=1) for prompt in make_prompts((3, 17, 60))]
    ours = serve(folder, "float32", prompts, kernels=kernels).answers
    theirs = serve(folder, "float32", prompts, kernels=TORCH_ISA).answers
    for answer, expected in zip(ours, theirs, strict=True):
        # One bit of float32 can move an activation to the next of 255 steps, which then spreads.
        assert relative_error(answer.stacked, expected.stacked) < LOGIT_ERROR / 3


@pytest.mark.promise("INT4-1", "GOLD-2")
@pytest.mark.parametrize("kernels", _COMPILED)
@pytest.mark.parametrize("form", [FORMATS[0], FORMATS[4]], ids=lambda form: form.name)
@pytest.mark.parametrize(
    "schedule",
    [Schedule("chunked", budget=7, max_num_seqs=5), Schedule("preemption", num_blocks=10, budget=20)],
    ids=lambda schedule: schedule.name,
)
def test_tokens_and_logits_do_not_depend_on_the_schedule(
    schedule: Schedule, form: Int4Format, kernels: str, int4_checkpoint: Int4Checkpoint
) -> None:
    folder, _ = int4_checkpoint(MODELS[2], form, "bfloat16")
    prompts = make_prompts((14, 15, 33, 50), num_tokens=30)
    served = serve(folder, "bfloat16", prompts, schedule, kernels=kernels)
    for prompt, answer in zip(prompts, served.answers, strict=True):
        alone = serve(folder, "bfloat16", [prompt], kernels=kernels).answers[0]
        assert answer.token_ids == alone.token_ids
        assert torch.equal(answer.stacked, alone.stacked)
