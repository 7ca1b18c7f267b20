"""The answer never depends on how the scheduler cut the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
import torch

from tests.golden.comparison import make_prompts
from tests.golden.conftest import Checkpoint
from tests.golden.engine import Answer, Prompt, Schedule, Served, kernel_sets, serve
from tests.golden.models import MODELS, TinyModel
from vllm_mxext import envs
from vllm_mxext.config.engine import DType, KVCacheDType, Quantization
from vllm_mxext.native.kernels.library import TORCH_ISA
from vllm_mxext.native.kernels.selection import select_kernels
from vllm_mxext.native.kernels.torch_deterministic import DeterministicTorchKernels
from vllm_mxext.native.kernels.torch_kernels import TorchKernels

FLOAT32_TOLERANCE = 1e-5
"""Relative to the largest logit, for kernels that are not batch-invariant."""

SCHEDULED_MODELS = tuple(
    model for model in MODELS if model.name in ("llama", "mistral_window", "qwen2_upper_windows", "qwen3")
)
_COMPILED = [name for name in kernel_sets() if name != TORCH_ISA]

CHUNKED = [Schedule(f"budget_{budget}", budget=budget, max_num_seqs=min(budget, 16)) for budget in (3, 16, 33, 100)]
CACHED = [
    Schedule("prefix_hits", enable_prefix_caching=True, runs=2),
    Schedule("prefix_hits_chunked", enable_prefix_caching=True, runs=2, budget=10),
]
TINY_POOL = Schedule("preemption", num_blocks=10, budget=64)
TINY_POOL_CACHED = Schedule("preemption_with_prefix_cache", num_blocks=10, budget=20, enable_prefix_caching=True)


@cache
def _alone(folder: Path, dtype: DType, prompts: tuple[Prompt, ...], kernels: str) -> list[Answer]:
    """Each prompt served whole and by itself."""
    lone = [replace(prompt, arrives_at=0) for prompt in prompts]
    return [serve(folder, dtype, [prompt], kernels=kernels).answers[0] for prompt in lone]


def _check(
    folder: Path, dtype: DType, prompts: Sequence[Prompt], schedule: Schedule, *, kernels: str, is_exact: bool
) -> Served:
    """Serves the prompts under a schedule and compares with each of them alone."""
    served = serve(folder, dtype, prompts, schedule, kernels=kernels)
    for answer, alone in zip(served.answers, _alone(folder, dtype, tuple(prompts), kernels), strict=True):
        assert answer.token_ids == alone.token_ids
        if is_exact:
            assert torch.equal(answer.stacked, alone.stacked)
        else:
            largest = float(alone.stacked.abs().max())
            torch.testing.assert_close(answer.stacked, alone.stacked, rtol=0, atol=FLOAT32_TOLERANCE * largest)
    return served


def _mixed() -> list[Prompt]:
    return make_prompts((1, 6, 16, 31, 70, 100))


def _shared_prefix() -> list[Prompt]:
    shared = make_prompts((50,))[0].token_ids
    return [Prompt((*shared, *tail.token_ids)) for tail in make_prompts((2, 9, 30))] + [Prompt(shared)]


def _staggered() -> list[Prompt]:
    return [
        replace(prompt, arrives_at=2 * index, num_tokens=4 + 5 * (index % 4))
        for index, prompt in enumerate(make_prompts((8, 40, 3, 64, 20, 90, 5)))
    ]


def _growing() -> list[Prompt]:
    return make_prompts((14, 15, 16, 13, 12), num_tokens=60)


by_model = pytest.mark.parametrize("model", SCHEDULED_MODELS, ids=lambda model: model.name)
exact_kernels = pytest.mark.parametrize("kernels", _COMPILED)
exact_dtypes = pytest.mark.parametrize("dtype", ["bfloat16", "float32"])


@exact_kernels
@exact_dtypes
@by_model
class TestCompiledKernelsAreExact:
    """Tokens and logits are bit-identical to the request served alone, whole."""

    @pytest.mark.promise("GOLD-2")
    @pytest.mark.parametrize("schedule", [Schedule("together"), *CHUNKED], ids=lambda schedule: schedule.name)
    def test_when_prompts_are_chunked(
        self, model: TinyModel, dtype: DType, kernels: str, schedule: Schedule, checkpoint: Checkpoint
    ) -> None:
        _check(checkpoint(model, dtype), dtype, _mixed(), schedule, kernels=kernels, is_exact=True)

    @pytest.mark.promise("GOLD-2")
    @pytest.mark.parametrize("schedule", CACHED, ids=lambda schedule: schedule.name)
    def test_when_prefixes_are_found_in_the_cache(
        self, model: TinyModel, dtype: DType, kernels: str, schedule: Schedule, checkpoint: Checkpoint
    ) -> None:
        served = _check(checkpoint(model, dtype), dtype, _shared_prefix(), schedule, kernels=kernels, is_exact=True)
        assert served.num_prefix_hits >= 4 * 48

    @pytest.mark.promise("GOLD-2")
    @pytest.mark.parametrize("schedule", [TINY_POOL, TINY_POOL_CACHED], ids=lambda schedule: schedule.name)
    def test_when_requests_are_preempted(
        self, model: TinyModel, dtype: DType, kernels: str, schedule: Schedule, checkpoint: Checkpoint
    ) -> None:
        served = _check(checkpoint(model, dtype), dtype, _growing(), schedule, kernels=kernels, is_exact=True)
        assert served.num_preempted > 0

    @pytest.mark.promise("GOLD-2")
    def test_when_requests_join_and_leave(
        self, model: TinyModel, dtype: DType, kernels: str, checkpoint: Checkpoint
    ) -> None:
        schedule = Schedule("staggered", budget=24, max_num_seqs=4)
        _check(checkpoint(model, dtype), dtype, _staggered(), schedule, kernels=kernels, is_exact=True)

    @pytest.mark.promise("GOLD-2", "SAMP-2")
    def test_when_tokens_are_sampled_with_a_seed(
        self, model: TinyModel, dtype: DType, kernels: str, checkpoint: Checkpoint
    ) -> None:
        prompts = [replace(prompt, temperature=1.0, seed=index) for index, prompt in enumerate(_growing())]
        _check(checkpoint(model, dtype), dtype, prompts, TINY_POOL_CACHED, kernels=kernels, is_exact=True)


@by_model
class TestTorchKernelsAgreeInFloat32:
    """Tokens are equal, logits close."""

    @pytest.mark.promise("GOLD-2")
    @pytest.mark.parametrize("schedule", [Schedule("together"), CHUNKED[1]], ids=lambda schedule: schedule.name)
    def test_when_prompts_are_chunked(self, model: TinyModel, schedule: Schedule, checkpoint: Checkpoint) -> None:
        _check(checkpoint(model, "float32"), "float32", _mixed(), schedule, kernels=TORCH_ISA, is_exact=False)

    @pytest.mark.promise("GOLD-2")
    def test_when_prefixes_are_found_in_the_cache(self, model: TinyModel, checkpoint: Checkpoint) -> None:
        folder = checkpoint(model, "float32")
        served = _check(folder, "float32", _shared_prefix(), CACHED[1], kernels=TORCH_ISA, is_exact=False)
        assert served.num_prefix_hits >= 4 * 48

    @pytest.mark.promise("GOLD-2")
    def test_when_requests_are_preempted(self, model: TinyModel, checkpoint: Checkpoint) -> None:
        folder = checkpoint(model, "float32")
        served = _check(folder, "float32", _growing(), TINY_POOL, kernels=TORCH_ISA, is_exact=False)
        assert served.num_preempted > 0

    @pytest.mark.promise("GOLD-2")
    def test_when_requests_join_and_leave(self, model: TinyModel, checkpoint: Checkpoint) -> None:
        schedule = Schedule("staggered", budget=24, max_num_seqs=4)
        _check(checkpoint(model, "float32"), "float32", _staggered(), schedule, kernels=TORCH_ISA, is_exact=False)


DETERMINISTIC = Schedule("alone", is_deterministic=True)


@pytest.mark.promise("DET-1", "GOLD-2")
@pytest.mark.parametrize(
    ("model", "dtype", "quantization", "kv_cache_dtype"),
    [
        (SCHEDULED_MODELS[0], "bfloat16", "none", "auto"),
        (SCHEDULED_MODELS[1], "float32", "none", "int8"),
        (SCHEDULED_MODELS[3], "float32", "int8", "auto"),
    ],
    ids=["bfloat16", "int8_kv", "int8_weights"],
)
def test_deterministic_torch_kernels_are_exact(
    model: TinyModel, dtype: DType, quantization: Quantization, kv_cache_dtype: KVCacheDType, checkpoint: Checkpoint
) -> None:
    """Logits are those of each request served alone, whole, also when it is cut, preempted and finds its prefix."""
    formats = {"quantization": quantization, "kv_cache_dtype": kv_cache_dtype}
    prompts = [replace(prompt, num_tokens=8) for prompt in make_prompts((1, 9, 31))]
    growing = make_prompts((14, 15, 16), num_tokens=36)

    def run(prompts: Sequence[Prompt], schedule: Schedule) -> Served:
        exact = replace(schedule, is_deterministic=True)
        return serve(checkpoint(model, dtype), dtype, prompts, exact, kernels=TORCH_ISA, **formats)

    alone = {prompt: run([prompt], DETERMINISTIC).answers[0] for prompt in (*prompts, *growing)}
    pool = replace(TINY_POOL_CACHED, num_blocks=9)
    for some, schedule in ((prompts, Schedule("together")), (prompts, CHUNKED[1]), (growing, pool)):
        served = run(some, schedule)
        for prompt, answer in zip(some, served.answers, strict=True):
            assert answer.token_ids == alone[prompt].token_ids
            assert torch.equal(answer.stacked, alone[prompt].stacked)
    assert served.num_preempted > 0


@pytest.mark.promise("DET-1")
def test_plain_torch_kernels_are_not_called_exact() -> None:
    cpu = torch.device("cpu")
    assert not TorchKernels(cpu).is_batch_invariant
    assert DeterministicTorchKernels(cpu).is_batch_invariant
    for name in kernel_sets():
        with mock.patch.dict("os.environ", {envs.CPU_ISA.name: name}):
            assert select_kernels(cpu, torch.float32, is_deterministic=True).is_batch_invariant
