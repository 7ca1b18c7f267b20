"""`best_of`: more samples are made than returned, and the most likely ones are."""

from __future__ import annotations

import pytest

from tests.engine_fakes import engine_config, make_core
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.engine.llm_engine import LLMEngine
from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.native.core_client import InprocCoreClient
from vllm_mxext.outputs import CompletionOutput
from vllm_mxext.sampling_params import OutputKind, SamplingParams

PARAMS = SamplingParams(max_tokens=9, seed=5, logprobs=1, output_kind=OutputKind.FINAL_ONLY)


def samples(params: SamplingParams) -> list[CompletionOutput]:
    engine = LLMEngine(engine_config(), core=_Core(), tokenizer=FakeTokenizer())
    engine.add_request("r", "hello", params)
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    assert len(outputs) == 1
    return outputs[0].outputs


class _Core(InprocCoreClient):
    def __init__(self) -> None:
        self._core = make_core()


@pytest.mark.promise("SAMP-9")
def test_the_most_likely_samples_are_returned_in_order() -> None:
    everything = samples(PARAMS.clone(n=5))
    best = samples(PARAMS.clone(n=2, best_of=5))
    ranked = sorted(everything, key=lambda sample: -(sample.cumulative_logprob or 0))
    assert [sample.token_ids for sample in best] == [sample.token_ids for sample in ranked[:2]]
    assert [sample.index for sample in best] == [0, 1]
    assert all(sample.logprobs for sample in best)


def test_log_probabilities_are_not_reported_unless_asked_for() -> None:
    [sample] = samples(PARAMS.clone(logprobs=None, best_of=4))
    assert sample.logprobs is None
    assert sample.token_ids == samples(PARAMS.clone(best_of=4))[0].token_ids


def test_intermediate_outputs_are_not_handed_out() -> None:
    assert len(samples(PARAMS.clone(best_of=3, output_kind=OutputKind.CUMULATIVE))) == 1


def test_the_best_of_several_cannot_be_streamed() -> None:
    with pytest.raises(InvalidRequestError, match="best_of must be n = 1 in a stream"):
        samples(PARAMS.clone(best_of=3, output_kind=OutputKind.DELTA))
