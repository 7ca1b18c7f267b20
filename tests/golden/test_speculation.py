"""Draft tokens never change an answer: tokens, logits and log probabilities are bit for bit those without."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.golden.comparison import make_prompts
from tests.golden.conftest import Checkpoint
from tests.golden.engine import MAX_MODEL_LEN, Answer, Prompt, Schedule, Served, kernel_sets, serve
from tests.golden.models import MODELS, TinyModel
from vllm_mxext.config.engine import DType, ModelConfig, SpeculationConfig
from vllm_mxext.config.model_spec import read_model_spec
from vllm_mxext.native.kernels.library import TORCH_ISA
from vllm_mxext.sampling_params import SamplingParams

pytestmark = pytest.mark.promise("SPEC-1")

NGRAM = SpeculationConfig("ngram", prompt_lookup_min=1, prompt_lookup_max=3)
SPECULATED = tuple(model for model in MODELS if model.name in ("llama", "mistral_window", "qwen3"))
OTHER = next(model for model in MODELS if model.name == "mistral_full")
COMPILED = [name for name in kernel_sets() if name != TORCH_ISA]

SCHEDULES = (
    Schedule("together"),
    Schedule("chunked", budget=16, max_num_seqs=8),
    Schedule("preemption", num_blocks=10, budget=64, enable_prefix_caching=True),
    Schedule("prefix_hits", enable_prefix_caching=True, runs=2),
)

CONTROLS: tuple[dict[str, Any], ...] = (
    {},
    {"logprobs": 3},
    {"repetition_penalty": 1.3, "presence_penalty": 0.4},
    {"frequency_penalty": 0.7, "logprobs": 0},
    {"repetition_penalty": 0.4},
    {"min_p": 0.05, "logit_bias": {7: 4.0}},
    {"mirostat": 2, "mirostat_tau": 3.0},
    {"xtc_probability": 0.5, "xtc_threshold": 0.05},
    {"dry_multiplier": 0.8, "typical_p": 0.9},
    {"top_k": 7, "top_p": 0.9},
    {"min_tokens": 9, "stop_token_ids": tuple(range(0, 301, 3))},
)


def requests() -> tuple[Prompt, ...]:
    """Greedy and sampled requests under every control; their prompts go round in circles."""
    circles = make_prompts(range(5, 5 + len(CONTROLS)))
    return tuple(
        Prompt(
            circle.token_ids * 4,
            seed=index,
            arrives_at=index if index < 2 else 2 * index,
            params=SamplingParams(
                max_tokens=50 if index < 2 else 16, temperature=temperature, ignore_eos=True, **controls
            ),
        )
        for index, (circle, controls) in enumerate(zip(circles, CONTROLS, strict=True))
        for temperature in (0.0, 0.7)
    )


def drafting(folder: Path, dtype: DType) -> SpeculationConfig:
    """Drafts come from the model of this folder."""
    model = ModelConfig(folder, folder, read_model_spec(folder), dtype, MAX_MODEL_LEN)
    return SpeculationConfig("draft_model", draft=model)


@cache
def without_drafts(folder: Path, dtype: DType, schedule: Schedule, kernels: str) -> list[Answer]:
    return serve(folder, dtype, requests(), schedule, kernels=kernels).answers


def check(folder: Path, dtype: DType, schedule: Schedule, speculation: SpeculationConfig, kernels: str) -> Served:
    """Serves with drafts and compares every bit."""
    drafted = replace(schedule, speculation=speculation, num_draft_tokens=4)
    served = serve(folder, dtype, requests(), drafted, kernels=kernels)
    compare(served.answers, without_drafts(folder, dtype, schedule, kernels))
    return served


def compare(answers: Sequence[Answer], expected: Sequence[Answer]) -> None:
    for answer, plain in zip(answers, expected, strict=True):
        assert answer.token_ids == plain.token_ids
        assert torch.equal(answer.stacked, plain.stacked)
        assert answer.logprobs == plain.logprobs
        assert answer.sampler_states[-1] == plain.sampler_states[-1]


by_model = pytest.mark.parametrize("model", SPECULATED, ids=lambda model: model.name)
by_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)


@pytest.mark.parametrize("kernels", COMPILED)
@by_model
@by_schedule
class TestAnswersAreThoseWithoutDrafts:
    def test_with_prompt_lookup(
        self, model: TinyModel, schedule: Schedule, kernels: str, checkpoint: Checkpoint
    ) -> None:
        served = check(checkpoint(model, "bfloat16"), "bfloat16", schedule, NGRAM, kernels)
        assert 0 < served.num_accepted < served.num_draft_tokens
        assert (served.num_preempted > 0) == (schedule.name == "preemption")

    @pytest.mark.promise("SPEC-5")
    def test_with_a_draft_model_that_is_always_right(
        self, model: TinyModel, schedule: Schedule, kernels: str, checkpoint: Checkpoint
    ) -> None:
        folder = checkpoint(model, "bfloat16")
        served = check(folder, "bfloat16", schedule, drafting(folder, "bfloat16"), kernels)
        assert served.num_accepted > 0.9 * served.num_draft_tokens > 0

    @pytest.mark.promise("SPEC-5")
    def test_with_a_draft_model_that_is_mostly_wrong(
        self, model: TinyModel, schedule: Schedule, kernels: str, checkpoint: Checkpoint
    ) -> None:
        speculation = drafting(checkpoint(OTHER, "bfloat16"), "bfloat16")
        served = check(checkpoint(model, "bfloat16"), "bfloat16", schedule, speculation, kernels)
        assert served.num_accepted < 0.5 * served.num_draft_tokens


@pytest.mark.promise("DET-1")
def test_deterministic_torch_kernels_give_the_same_bits_with_drafts(checkpoint: Checkpoint) -> None:
    folder = checkpoint(SPECULATED[0], "float32")
    exact = replace(SCHEDULES[1], is_deterministic=True)
    served = check(folder, "float32", exact, drafting(folder, "float32"), TORCH_ISA)
    assert served.num_accepted > 0


def test_drafts_make_steps_fewer(checkpoint: Checkpoint) -> None:
    folder = checkpoint(SPECULATED[0], "bfloat16")
    kernels = kernel_sets()[-1]
    schedule = Schedule("together")
    prompts = make_prompts((20,), num_tokens=40)
    plain = serve(folder, "bfloat16", prompts, schedule, kernels=kernels)
    drafted = replace(schedule, speculation=drafting(folder, "bfloat16"), num_draft_tokens=4)
    served = serve(folder, "bfloat16", prompts, drafted, kernels=kernels)
    assert (plain.num_steps, served.num_steps) == (40, 9)


def test_sampled_tokens_have_the_distribution_of_the_model(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The first two tokens of many seeds against the exact probabilities; about half of the drafts are right."""
    folder, kernels = checkpoint(SPECULATED[0], "float32"), kernel_sets()[-1]
    (prompt,) = make_prompts((9,), num_tokens=1)
    plain = Schedule("plain", max_num_seqs=32)
    first = softmax(serve(folder, "float32", [prompt], plain, kernels=kernels).answers)[0]
    continued = [replace(prompt, token_ids=(*prompt.token_ids, token_id)) for token_id in range(len(first))]
    second = first @ softmax(serve(folder, "float32", continued, plain, kernels=kernels).answers)

    speculation = drafting(blurred(folder, tmp_path / "draft"), "float32")
    drafted = Schedule("drafted", max_num_seqs=8, speculation=speculation, num_draft_tokens=8)
    seeded = [replace(prompt, num_tokens=3, temperature=1.0, seed=seed) for seed in range(800)]
    served = serve(folder, "float32", seeded, drafted, kernels=kernels)
    assert 0.2 < served.num_accepted / served.num_draft_tokens < 0.8
    for position, probabilities in enumerate((first, second)):
        drawn = torch.tensor([answer.token_ids[position] for answer in served.answers])
        assert chi_square_excess(drawn, probabilities) < 3.1


def blurred(folder: Path, target: Path) -> Path:
    """A checkpoint near another one."""
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for weight in weights.values():
        weight.add_(0.01 * weight.std() * torch.randn(weight.shape, generator=generator))
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def softmax(answers: Sequence[Answer]) -> torch.Tensor:
    return torch.cat([answer.stacked for answer in answers]).double().softmax(-1)


def chi_square_excess(drawn: torch.Tensor, probabilities: torch.Tensor) -> float:
    """Pearson's statistic as standard deviations of a normal variable (Wilson and Hilferty); rare tokens are one."""
    expected = probabilities * len(drawn)
    observed = torch.bincount(drawn, minlength=len(expected)).double()
    is_frequent = expected >= 5
    expected = torch.cat((expected[is_frequent], expected[~is_frequent].sum()[None]))
    observed = torch.cat((observed[is_frequent], observed[~is_frequent].sum()[None]))
    statistic, freedom = float(((observed - expected) ** 2 / expected).sum()), len(expected) - 1
    variance = 2 / (9 * freedom)
    return ((statistic / freedom) ** (1 / 3) - (1 - variance)) / variance**0.5
