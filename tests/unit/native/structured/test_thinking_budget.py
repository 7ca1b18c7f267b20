"""Thinking budgets in the real engine core, on a model of seeded noise over bytes."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from tests.unit.native.structured.test_engine import PROMPT, Answer, Engine, KnowingProposer
from vllm_mxext.config.engine import SpeculationConfig
from vllm_mxext.constraint_params import StructuredOutputsParams
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.engine.frontend.thinking_rules import ThinkingRules
from vllm_mxext.native.protocol import FinishReason, TokenRules
from vllm_mxext.native.structured.vocabulary import Vocabulary
from vllm_mxext.native.worker.model_runner import ModelRunner
from vllm_mxext.parsing.reasoning import THINK
from vllm_mxext.sampling_params import SamplingParams
from vllm_mxext.server.openai.reasoned_output import after_reasoning

pytestmark = pytest.mark.promise("TOOL-5")

END = b"</think>"
RULES = ThinkingRules(FakeTokenizer(), FakeTokenizer.SIZE, THINK)
WORD = StructuredOutputsParams(regex="[a-f]{3,9}!")
REASONED = after_reasoning(WORD, THINK, "<think>")


def add(engine: Engine, name: str, budget: int, constraint: dict[str, Any] | None = None, **params: Any) -> None:
    """Adds a request whose prompt has opened the reasoning."""
    asked = SamplingParams(thinking_token_budget=budget)
    rules = TokenRules(thinking=RULES.rule(asked, list(b"<think>")))
    engine.add(name, constraint, rules=rules, thinking_token_budget=budget, **{"ignore_eos": True, **params})


def add_all(engine: Engine) -> None:
    for budget in (0, 3, 17, 30):
        for temperature in (0.0, 1.0):
            values = {"temperature": temperature, "max_tokens": 40}
            add(engine, f"free {budget} {temperature}", budget, **values)
            add(engine, f"asking {budget} {temperature}", budget, **values, logprobs=1)
            add(engine, f"learning {budget} {temperature}", budget, **values, mirostat=2)
            values = {"temperature": temperature, "ignore_eos": False}
            add(engine, f"word {budget} {temperature}", budget, {"structural_tag": REASONED.structural_tag}, **values)


def tokens(answers: dict[str, Answer]) -> dict[str, list[int]]:
    return {name: answer.token_ids for name, answer in answers.items()}


@pytest.fixture(scope="module")
def expected(vocabulary: Vocabulary) -> dict[str, Answer]:
    engine = Engine(vocabulary)
    add_all(engine)
    return engine.run()


def test_the_end_comes_behind_the_budget_and_the_answer_goes_on(expected: dict[str, Answer]) -> None:
    for name, answer in expected.items():
        kind, budget = name.split()[0], int(name.split()[1])
        said = bytes(one if one < FakeTokenizer.FIRST_SPECIAL else 0 for one in answer.token_ids)
        num_late = said.index(END) - budget
        assert num_late == 0 or (kind == "word" and num_late <= 3), "a grammar lets a character be finished first"
        assert len(said) > budget + num_late + len(END)


def test_the_form_of_the_answer_holds_behind_a_forced_end(expected: dict[str, Answer]) -> None:
    for name, answer in expected.items():
        if name.startswith("word"):
            word = answer.text.partition("</think>")[2].strip()
            assert answer.last is not None
            assert answer.last.finish_reason is FinishReason.STOP
            assert 3 <= len(word.removesuffix("!")) <= 9, name
            assert set(word) <= set("abcdef!"), name


@pytest.mark.promise("SPEC-1")
@pytest.mark.parametrize("num_draft_tokens", [1, 5])
def test_drafts_change_nothing(expected: dict[str, Answer], vocabulary: Vocabulary, num_draft_tokens: int) -> None:
    with mock.patch.object(ModelRunner, "_make_proposer", return_value=KnowingProposer(expected, len(PROMPT))):
        engine = Engine(vocabulary, speculation=SpeculationConfig("ngram"), num_draft_tokens=num_draft_tokens)
    add_all(engine)
    answers = engine.run()
    assert engine.num_accepted > 40
    assert tokens(answers) == tokens(expected)


def test_preemption_changes_nothing(expected: dict[str, Answer], vocabulary: Vocabulary) -> None:
    tight = Engine(vocabulary, num_blocks=14, max_num_seqs=8, max_num_batched_tokens=64)
    add_all(tight)
    answers = tight.run()
    assert tight.num_preemptions > 0
    assert tokens(answers) == tokens(expected)


def test_a_request_goes_on_identically_after_a_restart_at_any_token(
    expected: dict[str, Answer], vocabulary: Vocabulary
) -> None:
    engine = Engine(vocabulary)
    for cut in (1, 16, 17, 18, 22, 25, 26):
        whole = expected["free 17 1.0"].token_ids
        add(engine, "free 17 1.0", 17, max_tokens=40, output_token_ids=whole[:cut])
        assert whole[:cut] + engine.run()["free 17 1.0"].token_ids == whole
