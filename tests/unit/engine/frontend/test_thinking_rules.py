"""Marks of reasoning as tokens of a real tokenizer, and budgets that cannot be kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.engine_fakes import engine_config
from vllm_mxext.builtin import model_path
from vllm_mxext.config.frontend import FrontendConfig
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.engine.engine_args import EngineArgs
from vllm_mxext.engine.frontend.input_processor import InputProcessor
from vllm_mxext.engine.frontend.thinking_rules import ThinkingRules, find_reasoning_format
from vllm_mxext.errors import ConfigError, InvalidRequestError
from vllm_mxext.native.protocol import ThinkingRule
from vllm_mxext.native.sampling.thinking import ThinkingBudget
from vllm_mxext.parsing.reasoning import DEEPSEEK_R1, GRANITE, THINK, ReasoningFormat
from vllm_mxext.requests import GenerateRequest, TextPrompt
from vllm_mxext.sampling_params import SamplingParams
from vllm_mxext.tokenizer.interface import Tokenizer
from vllm_mxext.tokenizer.loading import load_tokenizer

pytestmark = pytest.mark.promise("TOOL-5")

PARAMS = SamplingParams(thinking_token_budget=3, max_tokens=8)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(model_path())


def rule_of(tokenizer: Tokenizer, prompt: str, reasoning: ReasoningFormat = THINK) -> ThinkingRule | None:
    rules = ThinkingRules(tokenizer, tokenizer.vocab_size, reasoning)
    return rules.rule(PARAMS, tokenizer.encode(prompt, add_special_tokens=False))


def test_the_prompt_tells_whether_reasoning_is_open(tokenizer: Tokenizer) -> None:
    plain, opened, first = (
        rule_of(tokenizer, "hello"), rule_of(tokenizer, "hello <think>\n"), rule_of(tokenizer, "hello", DEEPSEEK_R1)
    )  # fmt: skip
    assert plain is not None
    assert opened is not None
    assert first is not None
    assert [plain.is_open, opened.is_open, first.is_open] == [False, True, True]
    assert rule_of(tokenizer, "hello <think>\n\n</think>\n\n") is None
    assert rule_of(tokenizer, "hello", DEEPSEEK_R1) is not None


def test_the_end_fits_the_start(tokenizer: Tokenizer) -> None:
    def ends(prompt: str) -> list[str]:
        rule = rule_of(tokenizer, prompt, GRANITE)
        assert rule is not None
        return [tokenizer.decode(closing) for closing in rule.closings]

    said = ["Here is my response:", "Here's my response:", "</think>"]
    assert ends("x") == said
    assert ends("Here's my thought process:")[0] == said[1]
    assert ends("<think>")[0] == said[2]


@pytest.mark.parametrize("behind", ["", "\n", "\n\n", "So", ">", " 1"])
def test_an_end_is_seen_whatever_it_is_tokenized_with(tokenizer: Tokenizer, behind: str) -> None:
    """The vocabulary has no token for the marks, so they melt into what stands around them."""
    rule = rule_of(tokenizer, "<think>")
    assert rule is not None
    thought = tokenizer.encode("2 < 3 <", add_special_tokens=False)
    closed = tokenizer.encode(f"2 < 3 <</think>{behind}", add_special_tokens=False)
    for limit in (0, len(thought)):
        budget = ThinkingBudget(limit, rule)
        assert budget.forced(np.array(thought), len(thought)) is not None
        assert budget.forced(np.array(closed), len(closed)) is None


def test_few_tokens_are_part_of_a_mark(tokenizer: Tokenizer) -> None:
    rule = rule_of(tokenizer, "x")
    assert rule is not None
    assert 0 < len(rule.pieces) < tokenizer.vocab_size / 10
    for mark in ("<think>", "</think>"):
        assert set(tokenizer.encode(mark, add_special_tokens=False)) <= rule.pieces.keys()


def processed(reasoning: ReasoningFormat | None, params: SamplingParams = PARAMS) -> ThinkingRule | None:
    processor = InputProcessor(engine_config(), FakeTokenizer(), lambda: 0, reasoning=reasoning)
    (sample,) = processor.process(GenerateRequest("r", TextPrompt("hi"), params), 0.0).samples
    return sample.rules.thinking if sample.rules else None


def test_a_request_takes_its_rule_along() -> None:
    rule = processed(THINK)
    assert rule is not None
    assert rule.closings == [list(b"</think>")]
    assert processed(THINK, SamplingParams(max_tokens=8, thinking_token_budget=-1)) is None


@pytest.mark.parametrize(
    ("reasoning", "reason"),
    [(None, "--reasoning-parser"), (ReasoningFormat(ends=("\ufffe<end>",)), "no tokens")],
    ids=["unknown", "cannot be written"],
)
def test_a_budget_that_cannot_be_kept_is_refused(reasoning: ReasoningFormat | None, reason: str) -> None:
    class Forgetful(FakeTokenizer):
        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            return [one for one in super().encode(text, add_special_tokens=add_special_tokens) if one < 0xC0]

    processor = InputProcessor(engine_config(), Forgetful(), lambda: 0, reasoning=reasoning)
    with pytest.raises(InvalidRequestError, match=reason) as info:
        processor.process(GenerateRequest("r", TextPrompt("hi"), PARAMS), 0.0)
    assert info.value.param == "thinking_token_budget"


def test_the_parser_comes_from_the_engine_arguments(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "from vllm_mxext.parsing.registry import ReasoningParserEntry\n"
        "from vllm_mxext.parsing.reasoning import MISTRAL\n"
        "REASONING_PARSERS = [ReasoningParserEntry('mine', None, format=MISTRAL)]\n"
    )
    frontend = EngineArgs(reasoning_parser="mine", tool_parser_plugin=str(plugin)).resolve().frontend
    found = find_reasoning_format(frontend, FakeTokenizer())
    assert found is not None
    assert found.ends == ("[/THINK]",)
    assert find_reasoning_format(FrontendConfig(), FakeTokenizer()) is None
    assert find_reasoning_format(FrontendConfig(reasoning_parser="openai_gptoss"), FakeTokenizer()) is None
    assert find_reasoning_format(FrontendConfig(reasoning_parser="auto"), FakeTokenizer()) is None
    with pytest.raises(ConfigError, match="qwen3"):
        find_reasoning_format(FrontendConfig(reasoning_parser="qwen"), FakeTokenizer())
