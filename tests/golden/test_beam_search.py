"""Beam search against `generate(num_beams=...)` of transformers on tiny models, in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.golden.comparison import make_prompts
from tests.golden.conftest import Checkpoint
from tests.golden.engine import WHOLE, engine_config, kernel_sets
from tests.golden.models import FAMILY_MODELS, TinyModel
from vllm_mxext import envs
from vllm_mxext.beam_search_params import BeamSearchParams
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.engine.beam_searching import run_beam_searches
from vllm_mxext.engine.llm_engine import LLMEngine
from vllm_mxext.outputs import CompletionOutput
from vllm_mxext.requests import BeamSearchRequest, TokensPrompt

pytestmark = pytest.mark.promise("BEAM-1")
NUM_TOKENS = 14
PROMPTS = [prompt.token_ids for prompt in make_prompts((3, 17, 40), vocab_size=FakeTokenizer.SIZE - 2)]

Rules = dict[str, Any]
"""`early_stopping` and `length_penalty`, named the same on both sides."""

RULES: tuple[Rules, ...] = (
    {"early_stopping": False, "length_penalty": 1.0},
    {"early_stopping": True, "length_penalty": 1.0},
    {"early_stopping": "never", "length_penalty": 1.0},
    {"early_stopping": "never", "length_penalty": 0.0},
    {"early_stopping": False, "length_penalty": 2.0},
    {"early_stopping": False, "length_penalty": -1.0},
)


class Searches:
    """One model in the engine and in transformers, with end-of-text tokens that its outputs run into."""

    def __init__(self, folder: Path) -> None:
        self._reference: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.eos = (FakeTokenizer.EOS, *self._likely_tokens())
        config = engine_config(folder, "float32", replace(WHOLE, enable_prefix_caching=True), "none")
        spec = replace(config.model.spec, eos_token_ids=self.eos)
        self._engine = LLMEngine(replace(config, model=replace(config.model, spec=spec)), tokenizer=FakeTokenizer())

    def ours(self, prompts: Sequence[Sequence[int]], params: BeamSearchParams) -> list[list[CompletionOutput]]:
        requests = [BeamSearchRequest(str(i), TokensPrompt(tuple(prompt)), params) for i, prompt in enumerate(prompts)]
        outputs = run_beam_searches(self._engine, requests, concurrency_limit=2)
        assert not self._engine.has_unfinished_requests()
        return [output.outputs for output in outputs]

    @torch.inference_mode()
    def theirs(
        self, prompt: Sequence[int], width: int, rules: Rules, *, has_eos: bool
    ) -> list[tuple[list[int], float]]:
        """Output tokens and log probabilities, best first."""
        inputs = torch.tensor([list(prompt)])
        result = self._reference.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
            eos_token_id=list(self.eos) if has_eos else None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            **rules,
        )
        found = []
        for sequence, score in zip(result.sequences[:, len(prompt) :].tolist(), result.sequences_scores, strict=True):
            ends = [i for i, token in enumerate(sequence) if has_eos and token in self.eos]
            token_ids = sequence[: ends[0] + 1] if ends else sequence
            found.append((token_ids, float(score) * len(token_ids) ** rules["length_penalty"]))
        return found

    @torch.inference_mode()
    def _likely_tokens(self) -> list[int]:
        """Tokens in the middle of greedy outputs."""
        found = []
        for position, prompt in enumerate(PROMPTS[:2]):
            inputs = torch.tensor([list(prompt)])
            output = self._reference.generate(
                inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=8, do_sample=False
            )
            found.append(int(output[0, len(prompt) + 3 + position]))
        return found


@pytest.fixture(scope="module", params=kernel_sets()[-1:])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    with mock.patch.dict("os.environ", {envs.CPU_ISA.name: request.param}):
        yield request.param


@pytest.mark.parametrize(
    ("model", "all_rules"), [(FAMILY_MODELS[0], RULES), *((model, RULES[:1]) for model in FAMILY_MODELS[1:])]
)
def test_hypotheses_are_those_of_transformers(
    model: TinyModel, all_rules: Sequence[Rules], kernels: str, checkpoint: Checkpoint
) -> None:
    searches = Searches(checkpoint(model, "float32"))
    num_stopped = 0
    for rules in all_rules:
        for width, has_eos in ((2, True), (3, True), (4, False)):
            params = BeamSearchParams(width, max_tokens=NUM_TOKENS, ignore_eos=not has_eos, **rules)
            for prompt, found in zip(PROMPTS, searches.ours(PROMPTS, params), strict=True):
                wanted = searches.theirs(prompt, width, rules, has_eos=has_eos)
                assert [sample.token_ids for sample in found] == [token_ids for token_ids, _ in wanted], (rules, width)
                logprobs = [sample.cumulative_logprob for sample in found]
                assert logprobs == pytest.approx([logprob for _, logprob in wanted], abs=1e-3)
                num_stopped += sum(sample.finish_reason == "stop" for sample in found)
    assert num_stopped > len(all_rules), "the fixture's outputs must run into end-of-text"
