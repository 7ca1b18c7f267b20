"""Every family and variant gives transformers' tokens and logits."""

from __future__ import annotations

import pytest
import torch

from tests.golden.comparison import compare, make_prompts
from tests.golden.conftest import Checkpoint
from tests.golden.engine import kernel_sets, serve
from tests.golden.models import FAMILY_MODELS, MODELS, TinyModel
from tests.golden.reference import reference
from vllm_mxext.config.engine import DType

PROMPT_LENGTHS = (1, 5, 17, 40, 90)

# Relative to the largest logit. Float32 sums of a few hundred products in another order differ by about 1e-6.
FLOAT32_TOLERANCE = 1e-5
# How much worse than transformers in the same dtype the root mean square error may be.
ROUNDING_FACTOR = 2.0

all_kernels = pytest.mark.parametrize("kernels", kernel_sets())


def _name(model: TinyModel) -> str:
    return model.name


@pytest.mark.promise("GOLD-1", "GOLD-3")
@all_kernels
@pytest.mark.parametrize("model", MODELS, ids=_name)
def test_float32_tokens_equal_and_logits_close_to_transformers(
    model: TinyModel, kernels: str, checkpoint: Checkpoint
) -> None:
    folder = checkpoint(model, "float32")
    result = compare(folder, "float32", make_prompts(PROMPT_LENGTHS), kernels=kernels)
    assert result.num_agreeing == result.num_tokens
    assert result.max_error <= FLOAT32_TOLERANCE * result.max_logit
    assert result.min_margin > 10 * result.max_error, "the fixture's margins are too small for the comparison"


@pytest.mark.promise("GOLD-3")
@all_kernels
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("model", MODELS, ids=_name)
def test_half_precision_logits_are_as_close_to_float32_as_those_of_transformers(
    model: TinyModel, dtype: DType, kernels: str, checkpoint: Checkpoint
) -> None:
    result = compare(checkpoint(model, dtype), dtype, make_prompts(PROMPT_LENGTHS), kernels=kernels)
    assert 0 < result.rms_error <= ROUNDING_FACTOR * result.reference_rms_error


@pytest.mark.promise("GOLD-1")
@all_kernels
@pytest.mark.parametrize("model", FAMILY_MODELS, ids=_name)
def test_greedy_tokens_are_those_of_generate(model: TinyModel, kernels: str, checkpoint: Checkpoint) -> None:
    folder = checkpoint(model, "float32")
    prompts = make_prompts((3, 33), num_tokens=24)
    theirs = reference(folder, torch.float32)
    answers = serve(folder, "float32", prompts, kernels=kernels).answers
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.token_ids == theirs.greedy(prompt.token_ids, prompt.num_tokens)


@pytest.mark.promise("LOAD-1")
@all_kernels
@pytest.mark.parametrize(("stored", "served"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_checkpoints_are_converted_to_the_dtype_asked_for(
    stored: str, served: DType, kernels: str, checkpoint: Checkpoint
) -> None:
    result = compare(checkpoint(FAMILY_MODELS[0], stored), served, make_prompts((9, 30)), kernels=kernels)
    if served == "float32":
        assert result.max_error <= FLOAT32_TOLERANCE * result.max_logit
    else:
        # The reference keeps the stored weights, so the rounding of weights counts on both sides.
        assert result.rms_error <= ROUNDING_FACTOR * result.reference_rms_error
