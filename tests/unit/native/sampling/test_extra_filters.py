"""llama.cpp's samplers against plain loops written after its source."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.unit.native.sampling import llama_cpp
from tests.unit.native.sampling.test_sampler import random_logits, sample
from vllm_mxext.native.protocol import TokenRules
from vllm_mxext.native.sampling import extra_filters as ours
from vllm_mxext.native.sampling.dry import dry
from vllm_mxext.native.sampling.extra_filters import extra_filters
from vllm_mxext.sampling_params import SamplingParams

pytestmark = pytest.mark.promise("SAMP-6")


def random_row(seed: int, size: int) -> list[float]:
    rng = np.random.default_rng(seed)
    return list((rng.standard_normal(size) * rng.uniform(0.5, 5)).tolist())


ROWS = st.builds(random_row, st.integers(0, 2**32), st.integers(2, 150))


def chosen(logits: np.ndarray, kept: np.ndarray) -> set[int]:
    return set(np.arange(len(logits))[kept].tolist())


def ids(current: llama_cpp.Candidates) -> set[int]:
    return {token for token, _ in current}


@pytest.mark.parametrize(
    ("filtered", "reference", "values"),
    [
        (ours.top_n_sigma, llama_cpp.top_n_sigma, st.floats(0.1, 5)),
        (ours.typical, llama_cpp.typical, st.floats(0.05, 0.95)),
        (ours.xtc, llama_cpp.xtc, st.floats(0.01, 0.5)),
        (ours.mirostat_2, llama_cpp.mirostat_2, st.floats(0.1, 12)),
        (
            lambda row, mu: ours.mirostat_1(row, mu, len(row)),
            lambda row, mu: llama_cpp.mirostat_1(row, mu, len(row)),
            st.floats(0.1, 12),
        ),
    ],
    ids=["top_n_sigma", "typical", "xtc", "mirostat_2", "mirostat_1"],
)
@settings(deadline=None)
@given(row=ROWS, data=st.data())
def test_a_filter_keeps_the_tokens_that_llama_cpp_keeps(
    filtered: Callable[..., np.ndarray], reference: Callable[..., llama_cpp.Candidates], values, row, data
) -> None:
    value = data.draw(values)
    logits = np.array(row)
    expected = {*map(frozenset, (ids(reference(llama_cpp.candidates(row), v)) for v in near(value)))}
    assume(len(expected) == 1)  # the value is not on the border of a token
    assert frozenset(chosen(logits, filtered(logits, value))) in expected


def near(value: float) -> tuple[float, float, float]:
    return value * (1 - 1e-9), value, value * (1 + 1e-9)


@given(row=ROWS, value=st.floats(0.1, 2), delta=st.floats(0.05, 2), exponent=st.floats(0.2, 3))
def test_the_dynamic_temperature_is_that_of_llama_cpp(row, value, delta, exponent) -> None:
    scaled = llama_cpp.temperature_ext(llama_cpp.candidates(row), value, delta, exponent)
    assume(abs(scaled[0][1]) > 1e-3)
    expected = max(row) / scaled[0][1]
    assume(expected > 0.011)
    assert ours.dynamic_temperature(np.array(row), value, delta, exponent) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("version", [1, 2])
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), tau=st.floats(1, 8), eta=st.floats(0.05, 1), heat=st.floats(0.3, 2))
def test_mirostat_follows_its_target_as_llama_cpp_does_over_a_whole_output(version, seed, tau, eta, heat) -> None:
    params = SamplingParams(temperature=heat, mirostat=version, mirostat_tau=tau, mirostat_eta=eta)
    filters = extra_filters(params)
    assert filters is not None
    state, mu = None, 2 * tau
    rng = np.random.default_rng(seed)
    for _ in range(12):
        row = (rng.standard_normal(80) * 3).astype(np.float32)
        left = llama_cpp.temperature(llama_cpp.candidates(row.tolist()), heat)
        left = llama_cpp.mirostat_1(left, mu, len(row)) if version == 1 else llama_cpp.mirostat_2(left, mu)
        token, state = filters.sample(row, float(rng.random()), 0.0, state)
        assert token in ids(left)
        mu = llama_cpp.mirostat_next(left, token, mu, tau, eta)
        assert state == pytest.approx(mu, rel=1e-6)


@settings(max_examples=300, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    multiplier=st.floats(0.1, 3),
    base=st.floats(1, 3),
    allowed=st.integers(1, 4),
    last_n=st.sampled_from([-1, 1, 5, 20, 100]),
    breakers=st.lists(st.lists(st.integers(2, 5), min_size=1, max_size=3), max_size=3),
)
def test_dry_penalises_what_llama_cpp_penalises(tokens, multiplier, base, allowed, last_n, breakers) -> None:
    params = SamplingParams(
        dry_multiplier=multiplier, dry_base=base, dry_allowed_length=allowed, dry_penalty_last_n=last_n
    )
    penalty = dry(params, TokenRules([], breakers))
    assert penalty is not None
    row = np.zeros(6, dtype=np.float32)
    penalty.penalize(row, np.array(tokens, dtype=np.int32))
    expected = llama_cpp.dry(
        tokens, multiplier=multiplier, base=base, allowed_length=allowed, last_n=last_n, breakers=breakers
    )
    np.testing.assert_allclose(-row, [expected.get(token, 0.0) for token in range(6)], rtol=1e-5)


@pytest.mark.filterwarnings("error")
def test_the_penalty_of_a_very_long_repetition_leaves_usable_logits() -> None:
    params = SamplingParams(temperature=0, dry_multiplier=100.0, dry_base=100.0)
    result = sample(random_logits(1), [params], outputs=[[7] * 60])
    assert result.token_ids[0] not in (-1, 7)


def test_xtc_drops_the_top_choices_as_often_as_asked() -> None:
    logits = np.full((1, 1100), -30.0, dtype=np.float32)
    logits[0, [4, 9]] = [2.0, 1.9]
    rows = random_logits(1).new_tensor(logits).expand(4000, -1)
    params = SamplingParams(xtc_probability=0.3, xtc_threshold=0.2)
    counts = np.bincount(sample(rows, [params] * 4000, seeds=range(4000)).token_ids)
    share_of_first = 0.7 * math.exp(2.0) / (math.exp(2.0) + math.exp(1.9))
    assert counts[4] / 4000 == pytest.approx(share_of_first, abs=0.03)


def test_samplers_work_one_after_the_other() -> None:
    params = SamplingParams(
        temperature=1.4, typical_p=0.9, top_n_sigma=2.5, min_p=0.01, top_k=30, top_p=0.9, xtc_probability=1.0
    )
    row = random_logits(1, seed=8)
    left = llama_cpp.temperature(llama_cpp.candidates(row[0].tolist()), 1.4)
    left = llama_cpp.typical(llama_cpp.top_n_sigma(left, 2.5), 0.9)
    left = [pair for pair in left if pair[1] >= left[0][1] + math.log(0.01)][:30]
    shares = llama_cpp.softmax(left)
    left = llama_cpp.xtc([pair for i, pair in enumerate(left) if sum(shares[:i]) < 0.9], 0.1)
    drawn = sample(row.expand(600, -1), [params] * 600, seeds=range(600)).token_ids
    assert set(drawn.tolist()) == ids(left)
