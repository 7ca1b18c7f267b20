import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_mxext.native.sampling.filters import filtered_weights, top_k_ids, top_p_indices

SETTINGS = settings(max_examples=200, deadline=None)


@st.composite
def rows(draw) -> np.ndarray:
    """Logits with many equal values now and then, and sometimes forbidden tokens."""
    size = draw(st.sampled_from([1, 2, 17, 300, 2000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    row = rng.standard_normal(size) * draw(st.sampled_from([0.0, 0.1, 3.0, 30.0]))
    if draw(st.booleans()):
        row = np.round(row)
    if draw(st.booleans()) and size > 2:
        row[rng.integers(0, size, size // 3)] = -np.inf
        row[0] = 0
    return row.astype(np.float32)


def ranked(row: np.ndarray) -> np.ndarray:
    """Ids by value, equal ones by id: the definition."""
    return np.lexsort((np.arange(len(row)), -row.astype(np.float64)))


@SETTINGS
@given(row=rows(), k=st.integers(1, 2100))
def test_top_k_keeps_the_k_most_likely_and_the_lowest_ids_of_equals(row, k):
    assert top_k_ids(row, k).tolist() == sorted(ranked(row)[:k].tolist())


@SETTINGS
@given(row=rows(), top_p=st.floats(0.001, 0.999))
def test_top_p_keeps_the_smallest_set_that_reaches_it(row, top_p):
    weights = np.exp(row - row.max())
    kept = top_p_indices(weights, top_p)
    probabilities = weights.astype(np.float64) / weights.astype(np.float64).sum()
    order = ranked(weights)
    reached = np.cumsum(probabilities[order])
    # Sums within rounding of top_p may go either way.
    fewest = int(np.searchsorted(reached, top_p - 1e-9)) + 1
    most = int(np.searchsorted(reached, top_p + 1e-9)) + 1
    assert fewest <= len(kept) <= most
    assert kept.tolist() == sorted(order[: len(kept)].tolist())


@pytest.mark.promise("SAMP-1")
@SETTINGS
@given(
    row=rows(),
    temperature=st.sampled_from([0.01, 0.5, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 5, 50, 5000]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
def test_filters_together_equal_the_naive_definition_in_float64(row, temperature, top_k, top_p, min_p):
    ids, weights = filtered_weights(row, temperature=np.float32(temperature), top_k=top_k, top_p=top_p, min_p=min_p)
    logits = row.astype(np.float64) / np.float64(np.float32(temperature))
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    order = ranked(row)
    is_kept = probabilities[order] >= min_p * probabilities.max() * (1 - 1e-5)
    if top_k:
        is_kept[top_k:] = False
    kept = order[is_kept]
    if top_p < 1:
        shares = probabilities[kept] / probabilities[kept].sum()
        before = np.cumsum(shares) - shares
        kept = kept[before < top_p - 1e-6]
    # Tokens exactly at the edge of a filter may fall on either side of it in float32.
    extra = set(ids.tolist()) ^ set(kept.tolist())
    assert all(_is_at_the_edge(probabilities, token, top_p, min_p) for token in extra)
    common = np.isin(ids, kept)
    expected = probabilities[ids] / probabilities.max()
    np.testing.assert_allclose(weights[common], expected[common], rtol=2e-4, atol=1e-30)


def _is_at_the_edge(probabilities: np.ndarray, token: int, top_p: float, min_p: float) -> bool:
    at_min_p = min_p > 0 and np.isclose(probabilities[token], min_p * probabilities.max(), rtol=1e-3)
    equals = np.isclose(probabilities, probabilities[token], rtol=1e-3).sum()
    negligible = probabilities[token] < 1e-6
    return bool(at_min_p or (top_p < 1 and equals > 1) or negligible)


@pytest.mark.parametrize("size", [1, 64, 129, 5000])
def test_equally_likely_tokens_are_kept_by_lowest_id(size):
    row = np.zeros(size, dtype=np.float32)
    k = max(1, size // 3)
    assert top_k_ids(row, k).tolist() == list(range(k))
    assert top_p_indices(np.exp(row), 0.5).tolist() == list(range((size + 1) // 2))
