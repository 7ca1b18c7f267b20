"""When a thinking budget forces which token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vllm_mxext.native.protocol import ThinkingRule, TokenRules
from vllm_mxext.native.sampling.metadata import FAILED_TOKEN_ID, SamplingColumns, SamplingMetadata
from vllm_mxext.native.sampling.sampler import Sampler
from vllm_mxext.native.sampling.thinking import ThinkingBudget
from vllm_mxext.sampling_params import SamplingParams

pytestmark = pytest.mark.promise("TOOL-5")

WORDS = {1: b"<think>", 2: b"</think>", 3: b"<", 4: b"think", 5: b">", 6: b"</", 7: b">\n\n", 8: b"\n", 9: b" <think"}
TEXT = 10
"""A token that is part of no marker."""


def rule(closing: tuple[int, ...] = (2,), **changes: Any) -> ThinkingRule:
    return ThinkingRule([b"<think>"], [list(closing)], [b"</think>", b"<call>"], WORDS, **changes)


def forced(limit: int, output: list[int], used: ThinkingRule | None = None) -> int | None:
    return ThinkingBudget(limit, used or rule()).forced(np.array(output, dtype=np.int32), len(output))


@pytest.mark.parametrize("start", [[1], [3, 4, 5], [9, 7], [8, 8, 1], [3, 4, 7]], ids=str)
def test_tokens_behind_the_start_count_however_it_is_written(start: list[int]) -> None:
    assert forced(2, start) is None
    assert forced(2, [*start, TEXT]) is None
    assert forced(2, [*start, TEXT, TEXT]) == 2
    assert forced(0, start) == 2


@pytest.mark.parametrize(
    "output", [[], [TEXT] * 5, [8, 8], [3, 4], [3, TEXT, 1, TEXT, TEXT], [TEXT, 1, TEXT, TEXT]], ids=str
)
def test_without_reasoning_at_the_beginning_nothing_is_forced(output: list[int]) -> None:
    assert forced(1, output) is None
    assert forced(0, output) is None


def test_where_the_prompt_has_opened_the_reasoning_all_tokens_count() -> None:
    used = rule(is_open=True)
    assert forced(0, [], used) == 2
    assert forced(2, [TEXT], used) is None
    assert forced(2, [TEXT, 3], used) == 2
    assert forced(1, [1], used) is None, "a start that is written again is a marker"
    assert forced(1, [1, TEXT], used) == 2


@pytest.mark.parametrize("end", [[2], [6, 4, 5], [6, 4, 7], [3, TEXT, 6, 4, 7]], ids=str)
def test_the_answer_is_free_once_the_model_has_ended_its_reasoning(end: list[int]) -> None:
    output = [1, TEXT, *end]
    for further in ([], [TEXT], [TEXT, 1, TEXT, TEXT], [2]):
        assert forced(len(end) + 1, [*output, *further]) is None


def test_closing_tokens_come_one_after_the_other_and_then_nothing_is_forced() -> None:
    used, output, came = rule((6, 4, 5)), [1, TEXT, TEXT], []
    for _ in range(6):
        token_id = forced(2, output, used)
        came.append(token_id)
        output.append(TEXT if token_id is None else token_id)
    assert came == [6, 4, 5, None, None, None]


def test_a_closing_that_was_not_let_through_begins_again() -> None:
    used = rule((6, 4, 5))
    assert forced(1, [1, TEXT, 6, 4, TEXT], used) == 6
    assert forced(1, [1, TEXT, 6, 4, 6], used) == 4


def test_each_start_has_an_end_of_its_own() -> None:
    used = ThinkingRule([b"<think>", b"<"], [[2], [6]], [b"</think>"], WORDS)
    assert forced(0, [1], used) == 2
    assert forced(0, [3, TEXT], used) == 6


def test_the_longest_start_counts() -> None:
    used = ThinkingRule([b"<think", b"<think>"], [[6], [2]], [b"</think>"], WORDS)
    assert forced(0, [3, 4], used) is None
    assert forced(0, [3, 4, 5], used) == 2
    assert forced(0, [3, 4, TEXT], used) == 6


def test_drafts_are_looked_at_and_not_remembered() -> None:
    budget = ThinkingBudget(2, rule((6, 4, 5)))
    settled = [1, TEXT]

    def behind(drafts: list[int]) -> int | None:
        return budget.forced(np.array(settled + drafts, dtype=np.int32), len(settled))

    assert behind([TEXT]) == 6
    assert behind([TEXT, 6]) == 4
    assert behind([2]) is None
    assert behind([2, TEXT]) is None
    assert behind([]) is None
    settled.append(TEXT)
    assert behind([]) == 6
    assert behind([6, 4]) == 5
    assert behind([6, TEXT]) == 6


def metadata_of(output: list[int], params: SamplingParams, *, is_moved: bool = False) -> SamplingMetadata:
    columns = SamplingColumns(2)
    columns.set_row(0, params, 0, [0], TokenRules(thinking=rule(is_open=True)))
    if is_moved:
        columns.move_row(0, 1)
        assert not columns.select(np.array([0]), np.array([3]), np.array([1]), np.zeros((2, 9), np.int32)).forced
    row = int(is_moved)
    tokens = np.zeros((2, 9), dtype=np.int32)
    tokens[row, 1 : 1 + len(output)] = output
    return columns.select(np.array([row]), np.array([1 + len(output)]), np.array([1]), tokens)


def sampled(metadata: SamplingMetadata, logits: torch.Tensor | None = None) -> int:
    logits = torch.arange(20.0)[None] if logits is None else logits
    return int(Sampler().sample(logits, metadata).token_ids[0])


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0},
        {"temperature": 2.0, "top_p": 0.5},
        {"logit_bias": {2: -100}, "bad_words": ("x",)},
        {"allowed_token_ids": (15,)},
        {"stop_token_ids": (2,), "min_tokens": 8},
        {"mirostat": 2},
        {"xtc_probability": 1.0, "xtc_threshold": 0.0},
        {"repetition_penalty": 1.5, "dry_multiplier": 2.0},
    ],
    ids=str,
)
def test_a_forced_token_beats_every_parameter(params: dict[str, Any]) -> None:
    asked = SamplingParams(thinking_token_budget=2, **params)
    assert sampled(metadata_of([TEXT, TEXT], asked)) == 2
    assert sampled(metadata_of([TEXT], asked)) != 2


def test_a_row_takes_its_budget_along_when_it_moves() -> None:
    assert metadata_of([TEXT, TEXT], SamplingParams(thinking_token_budget=2), is_moved=True).forced == {0: 2}


def test_log_probabilities_are_those_of_the_model() -> None:
    metadata = metadata_of([TEXT], SamplingParams(thinking_token_budget=1, logprobs=1))
    logits = torch.arange(20.0)[None]
    expected = torch.log_softmax(logits, 1)[0]
    [reported] = Sampler().sample(logits.clone(), metadata).logprobs.values()
    assert (reported.token_ids, reported.rank) == ([2, 19], 18)
    assert reported.logprobs == pytest.approx([expected[2].item(), expected[19].item()])


def test_a_grammar_that_forbids_the_token_wins() -> None:
    metadata = metadata_of([TEXT], SamplingParams(thinking_token_budget=1, temperature=0))
    for allowed, token_id in ((0b100, 2), (0b1100, 2), (0b1000, 3)):
        metadata.allowed_bitmask[0] = np.array([allowed], dtype=np.int32)
        assert sampled(metadata) == token_id


def test_unusable_logits_are_not_hidden() -> None:
    logits = torch.zeros(1, 20)
    logits[0, 4] = torch.nan
    metadata = metadata_of([TEXT], SamplingParams(thinking_token_budget=1, temperature=0))
    assert sampled(metadata, logits) == FAILED_TOKEN_ID
