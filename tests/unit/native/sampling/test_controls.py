"""Logit bias, allowed ids, bad words, and log probabilities of chosen ids."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.unit.native.sampling.test_sampler import VOCAB_SIZE, random_logits, sample
from vllm_mxext.native.protocol import TokenRules
from vllm_mxext.native.sampling.metadata import SamplingColumns
from vllm_mxext.native.sampling.sampler import Sampler
from vllm_mxext.sampling_params import SamplingParams

pytestmark = pytest.mark.promise("SAMP-7")

GREEDY = SamplingParams(temperature=0)


def choose(logits: torch.Tensor, params: SamplingParams, output: list[int], rules: TokenRules | None = None) -> int:
    columns = SamplingColumns(1)
    columns.set_row(0, params, 0, [0], rules)
    tokens = np.array([[3, *output]], dtype=np.int32)
    metadata = columns.select(np.array([0]), np.array([1 + len(output)]), np.array([1]), tokens)
    return int(Sampler().sample(logits.clone(), metadata).token_ids[0])


def test_a_bias_is_added_to_its_logits() -> None:
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 5] = 3
    assert choose(logits, GREEDY.clone(logit_bias={7: 3.5, 5: -0.1}), []) == 7
    assert choose(logits, GREEDY.clone(logit_bias={7: 2.5}), []) == 5


def test_only_allowed_ids_are_sampled() -> None:
    params = [SamplingParams(allowed_token_ids=(900, 4, 900, 33))] * 60
    assert set(sample(random_logits(60), params).token_ids.tolist()) == {4, 33, 900}


def test_a_bad_word_is_stopped_at_its_last_token_and_only_there() -> None:
    logits = torch.zeros(1, 20)
    logits[0, 9], logits[0, 2] = 2, 1
    rules = TokenRules([[4, 5, 9]])
    assert choose(logits, GREEDY, [4, 5], rules) == 2
    assert choose(logits, GREEDY, [5, 4, 5], rules) == 2
    assert choose(logits, GREEDY, [4, 4], rules) == 9
    assert choose(logits, GREEDY, [5], rules) == 9


def test_a_bad_word_of_one_token_is_never_sampled() -> None:
    logits = torch.zeros(1, 20)
    logits[0, 9], logits[0, 2] = 2, 1
    assert choose(logits, GREEDY, [], TokenRules([[9]])) == 2


def test_the_prompt_is_no_part_of_a_bad_word() -> None:
    logits = torch.zeros(1, 20)
    logits[0, 9] = 2
    assert choose(logits, GREEDY, [], TokenRules([[3, 9]])) == 9


@pytest.mark.promise("SAMP-4")
def test_log_probabilities_of_ids_asked_for_are_raw_and_ranked() -> None:
    logits = random_logits(1, seed=4)
    params = SamplingParams(logprobs=2, logprob_token_ids=(8, 1000), logit_bias={8: 50.0})
    expected = torch.log_softmax(logits[0].double(), dim=0).numpy()
    entry = sample(logits, [params]).logprobs[0]
    assert entry.token_ids[0] == 8
    assert entry.token_ids[3:] == [8, 1000]
    np.testing.assert_allclose(entry.logprobs, expected[entry.token_ids], atol=1e-5)
    assert entry.other_ranks == [1 + int((expected > expected[i]).sum()) for i in (8, 1000)]


def test_ids_asked_for_are_reported_without_logprobs() -> None:
    entry = sample(random_logits(1), [SamplingParams(logprob_token_ids=(8,))]).logprobs[0]
    assert entry.token_ids[1:] == [8]
