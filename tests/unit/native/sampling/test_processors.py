"""Plug-ins change the logits of their requests, and fail none but these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tests.logits_plugins import Broken, OnlyToken, SecondThought, Unmakeable
from tests.unit.native.sampling.test_sampler import KINDS, random_logits
from vllm_mxext.errors import ConfigError
from vllm_mxext.native.sampling.metadata import FAILED_TOKEN_ID, SamplerOutput, SamplingColumns
from vllm_mxext.native.sampling.processors import LogitsProcessors
from vllm_mxext.native.sampling.sampler import Sampler
from vllm_mxext.sampling_params import SamplingParams

pytestmark = pytest.mark.promise("SAMP-10")

PLUGINS = LogitsProcessors([OnlyToken, SecondThought, Broken])


def asking(**extra_args: Any) -> SamplingParams:
    return SamplingParams(temperature=0, extra_args=extra_args)


def sample(logits: torch.Tensor, params: Sequence[SamplingParams], outputs: Sequence[Sequence[int]]) -> SamplerOutput:
    columns = SamplingColumns(len(params))
    tokens = np.zeros((len(params), 9), dtype=np.int32)
    for row, one in enumerate(params):
        columns.set_row(row, one, row, [0], None, None, PLUGINS.for_request(one, [6, 7]))
        tokens[row, : 2 + len(outputs[row])] = [6, 7, *outputs[row]]
    lengths = np.array([2 + len(output) for output in outputs])
    metadata = columns.select(np.arange(len(params)), lengths, np.full(len(params), 2), tokens)
    return Sampler().sample(logits.clone(), metadata)


def test_a_plug_in_decides_what_its_request_samples() -> None:
    result = sample(random_logits(2), [asking(only=33), asking()], [[], []])
    assert result.token_ids.tolist() == [33, int(random_logits(2)[1].argmax())]


def test_a_plug_in_sees_prompt_and_output() -> None:
    logits = random_logits(2)
    result = sample(logits, [asking(second=True)] * 2, [[], [5]])
    assert result.token_ids.tolist() == [int(logits[0].argmax()), 6]


def test_plug_ins_come_after_bias_and_before_penalties() -> None:
    params = SamplingParams(temperature=0, logit_bias={40: 100.0}, repetition_penalty=1.5, extra_args={"only": 33})
    assert sample(random_logits(1), [params], [[33]]).token_ids.tolist() == [33]


@pytest.mark.promise("PAIN-3")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("early", "Broken failed with RuntimeError: broken early"),
        ("late", "Broken failed with RuntimeError: broken late"),
        ("shape", "Broken failed with ValueError"),
        ("nothing", "Broken failed with AttributeError"),
        ("nan", "Broken left no usable scores"),
    ],
)
def test_pain_3_a_broken_plug_in_fails_its_own_request_and_changes_no_other(how: str, message: str) -> None:
    others = [kind.clone(logprobs=2) for kind in KINDS.values()]
    logits = random_logits(len(others) + 1)
    good = sample(logits, [*others, asking()], [[1]] * (len(others) + 1))
    bad = sample(logits, [*others, asking(broken=how)], [[1]] * (len(others) + 1))
    last = len(others)
    assert bad.token_ids[last] == FAILED_TOKEN_ID
    assert message in bad.errors[last]
    assert set(bad.errors) == {last}
    assert bad.token_ids[:last].tolist() == good.token_ids[:last].tolist()
    assert all(bad.logprobs[row] == good.logprobs[row] for row in range(last))


def test_a_plug_in_that_keeps_the_order_is_not_asked_for_greedy_requests() -> None:
    class Ordered(OnlyToken):
        def is_argmax_invariant(self):
            return True

    plugins = LogitsProcessors([Ordered])
    assert plugins.for_request(asking(only=3), [1]) is None
    assert plugins.for_request(SamplingParams(extra_args={"only": 3}), [1]) is not None


def test_a_plug_in_that_cannot_be_made_is_named() -> None:
    with pytest.raises(ConfigError, match="Unmakeable cannot be made"):
        LogitsProcessors([Unmakeable])
