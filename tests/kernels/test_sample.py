"""The compiled sampler chooses the tokens that numpy's chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch

from vllm_mxext.native.kernels.library import KernelLibrary, load_library
from vllm_mxext.native.sampling.metadata import SamplingColumns, SamplingMetadata
from vllm_mxext.native.sampling.sampler import Sampler
from vllm_mxext.native.worker.row_sampling import CompiledRowSampling
from vllm_mxext.sampling_params import SamplingParams

pytestmark = pytest.mark.promise("KERN-1")

KINDS = {
    "greedy": SamplingParams(temperature=0),
    "temperature": SamplingParams(temperature=0.7),
    "hot": SamplingParams(temperature=2.0),
    "min_p": SamplingParams(min_p=0.02),
    "top_k": SamplingParams(top_k=40),
    "top_1": SamplingParams(top_k=1),
    "most": SamplingParams(top_k=900),
    "top_p": SamplingParams(top_p=0.8),
    "nearly_all": SamplingParams(temperature=1.5, top_p=0.999),
    "hardly_any": SamplingParams(top_p=1e-6),
    "usual": SamplingParams(temperature=0.7, top_k=20, top_p=0.95),
    "all": SamplingParams(temperature=1.3, top_k=200, top_p=0.95, min_p=0.001),
    "top_p_min_p": SamplingParams(temperature=0.5, top_p=0.9, min_p=0.05),
}


@pytest.fixture
def library(isa: str) -> Iterator[KernelLibrary]:
    library = load_library(isa)
    yield library
    library.set_num_threads(1)


def metadata_of(params: Sequence[SamplingParams], first_seed: int = 0) -> SamplingMetadata:
    count = len(params)
    columns = SamplingColumns(count)
    for row, one in enumerate(params):
        columns.set_row(row, one, first_seed + row)
    ones = np.ones(count, dtype=np.int64)
    return columns.select(np.arange(count), ones, ones, np.zeros((count, 1), dtype=np.int32))


def flat(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.standard_normal(shape) * 0.01


def peaked(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.standard_normal(shape) * 8


def tied(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return np.round(rng.standard_normal(shape) * 2)


def forbidden(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    rows = rng.standard_normal(shape) * 3
    rows[:, rng.permutation(shape[1])[2:]] = -np.inf
    return rows


@pytest.mark.parametrize("make", [flat, peaked, tied, forbidden])
@pytest.mark.parametrize("vocab_size", [2, 37, 1100, 20_011])
def test_tokens_are_those_of_numpy(library: KernelLibrary, make: Callable[..., np.ndarray], vocab_size: int) -> None:
    params = [kind for kind in KINDS.values() for _ in range(8)]
    rows = make(np.random.default_rng(vocab_size), (len(params), vocab_size)).astype(np.float32)
    logits = torch.from_numpy(rows)
    library.set_num_threads(3)
    for seed in (0, 1000):
        metadata = metadata_of(params, seed)
        expected = Sampler().sample(logits.clone(), metadata).token_ids
        actual = Sampler(CompiledRowSampling(library)).sample(logits.clone(), metadata).token_ids
        names = [name for name in KINDS for _ in range(8)]
        wrong = {names[row] for row in np.flatnonzero(expected != actual)}
        assert not wrong


@pytest.mark.promise("SAMP-2")
def test_a_row_gives_the_same_token_alone_and_in_a_batch_on_any_number_of_threads(library: KernelLibrary) -> None:
    params = [kind for kind in KINDS.values() for _ in range(3)]
    logits = torch.from_numpy((np.random.default_rng(0).standard_normal((len(params), 5000)) * 3).astype(np.float32))
    sampler = Sampler(CompiledRowSampling(library))
    library.set_num_threads(4)
    together = sampler.sample(logits, metadata_of(params)).token_ids.tolist()
    library.set_num_threads(1)
    alone = [
        int(sampler.sample(logits[row : row + 1], metadata_of([one], row)).token_ids[0])
        for row, one in enumerate(params)
    ]
    assert together == alone


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
@pytest.mark.parametrize("place", [0, 700, 1099])
def test_unusable_logits_fail_their_row_only(library: KernelLibrary, bad: float | None, place: int) -> None:
    params = list(KINDS.values())
    logits = torch.from_numpy(np.random.default_rng(3).standard_normal((len(params), 1100)).astype(np.float32))
    sampler = Sampler(CompiledRowSampling(library))
    good = sampler.sample(logits, metadata_of(params)).token_ids
    for row in range(len(params)):
        broken = logits.clone()
        if bad is None:
            broken[row] = -torch.inf
        else:
            broken[row, place] = bad
        result = sampler.sample(broken, metadata_of(params)).token_ids
        assert result[row] == -1
        assert np.delete(result, row).tolist() == np.delete(good, row).tolist()
