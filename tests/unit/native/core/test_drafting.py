"""Room for drafts: what is left when everybody has had their tokens, and what becomes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.native.core.builders import EOS, NEXT_TOKEN, Engine, only
from vllm_mxext.native.protocol import FinishReason, ModelRunnerOutput, SchedulerOutput
from vllm_mxext.sampling_params import SamplingParams


class DraftingEngine(Engine):
    """An engine whose runner drafts as much as it may; the model agrees with the first `num_right` drafts."""

    num_right = 10**6
    seconds_per_draft = 0.0
    """Beside a second per step."""
    is_catching_up = False

    def execute(self, scheduled: SchedulerOutput) -> ModelRunnerOutput:
        self.now_s += 1.0 + self.seconds_per_draft * sum(scheduled.num_draft_tokens.values())
        result = super().execute(scheduled)
        for request_id, num_drafts in scheduled.num_draft_tokens.items():
            (token_id,) = result.sampled_token_ids[request_id]
            result.num_draft_tokens[request_id] = num_drafts
            result.num_accepted_tokens[request_id] = num_right = min(num_drafts, self.num_right)
            result.sampled_token_ids[request_id] = [token_id] * (1 + num_right)
        return replace(result, is_catching_up=self.is_catching_up)


def decoding(*request_ids: str, prompt: int = 4, max_tokens: int = 40, **options: object) -> DraftingEngine:
    """An engine whose requests have their prompts behind them."""
    engine = DraftingEngine(**{"num_draft_tokens": 4, **options})
    for request_id in request_ids:
        engine.add(request_id, prompt, max_tokens=max_tokens)
    engine.step()
    return engine


def test_a_step_brings_the_accepted_drafts_and_a_token_more() -> None:
    engine = decoding("a")
    for _ in range(4):
        scheduled, outputs = engine.step()
    assert scheduled.num_scheduled_tokens == {"a": 1}
    assert scheduled.num_draft_tokens == {"a": 4}
    assert len(only(outputs).new_token_ids) == 5
    engine.scheduler.check_integrity()


@pytest.mark.promise("SPEC-2")
def test_prompts_have_the_budget_before_drafts() -> None:
    engine = decoding("a", max_num_batched_tokens=20, max_num_seqs=2)
    engine.add("b", 60, max_tokens=1)
    scheduled, _ = engine.step()
    assert scheduled.num_scheduled_tokens == {"a": 1, "b": 19}
    assert scheduled.num_draft_tokens == {}


@pytest.mark.promise("SPEC-2")
def test_drafts_take_no_block_from_anybody() -> None:
    engine = decoding("a", "b", "c", block_size=4, num_blocks=6, max_model_len=16, prompt=3, max_tokens=5)
    engine.num_right = 0
    scheduled, outputs = engine.step()
    assert scheduled.num_scheduled_tokens == {"a": 1, "b": 1, "c": 1}
    assert scheduled.num_draft_tokens == {"a": 1, "b": 1}
    assert outputs.stats is not None
    assert (outputs.stats.num_preempted, outputs.stats.num_free_blocks) == (0, 0)  # each has its fifth token to compute
    assert {reason for reason, _ in engine.run().values()} == {FinishReason.LENGTH}


@pytest.mark.promise("SPEC-2")
def test_blocks_behind_rejected_drafts_are_free_again_after_the_step() -> None:
    engine = decoding("a", block_size=4, prompt=4)
    engine.num_right = 0
    num_free = engine.scheduler.num_free_blocks
    scheduled, _ = engine.step()
    assert scheduled.cached_requests[0].new_block_ids
    assert engine.scheduler.num_free_blocks == num_free - 1


@pytest.mark.promise("SPEC-2")
def test_drafts_end_before_max_tokens_and_the_context() -> None:
    engine = decoding("a", max_tokens=4)
    scheduled, outputs = engine.step()
    assert scheduled.num_draft_tokens == {"a": 2}
    assert only(outputs).finish_reason is FinishReason.LENGTH
    engine = decoding("a", prompt=12, max_model_len=16)
    assert engine.step()[0].num_draft_tokens == {"a": 2}


@pytest.mark.promise("SPEC-1", "SAMP-3")
def test_a_stop_within_accepted_drafts_drops_what_comes_after() -> None:
    engine = decoding("a")
    engine.next_tokens["a"] = EOS
    output = only(engine.step()[1])
    assert (output.new_token_ids, output.finish_reason) == ([EOS], FinishReason.STOP)


def test_blocks_full_of_accepted_tokens_are_found_by_others() -> None:
    engine = decoding("a", block_size=4, prompt=4, max_tokens=9)
    engine.run()
    engine.add("b", [*(1000 * ord("a") + index for index in range(4)), *[NEXT_TOKEN] * 9], max_tokens=1)
    (_, outputs) = engine.step()
    assert only(outputs).num_cached_tokens == 12


def test_mirostat_with_a_grammar_goes_without_drafts() -> None:
    engine = DraftingEngine(num_draft_tokens=4)
    engine.add("a", params=SamplingParams(max_tokens=20, mirostat=2), grammar="{}")
    engine.step()
    assert engine.step()[0].num_draft_tokens == {}


@pytest.mark.promise("SPEC-3")
def test_a_request_whose_drafts_are_wrong_goes_without_before_long() -> None:
    engine = decoding("a", max_tokens=55)
    engine.num_right = 0
    drafted = [sum(engine.step()[0].num_draft_tokens.values()) for _ in range(40)]
    assert drafted[0] > 0
    assert sum(drafted[20:]) <= 3


@pytest.mark.promise("SPEC-3")
@pytest.mark.parametrize("num_requests", [1, 4])
def test_no_drafts_are_made_where_one_turns_out_to_cost_more_than_a_token(num_requests: int) -> None:
    engine = decoding(*"abcd"[:num_requests], max_tokens=2000, max_model_len=4000, num_blocks=4000)
    engine.seconds_per_draft = 2.0
    drafted = [bool(engine.step()[0].num_draft_tokens) for _ in range(200)]
    assert any(drafted[:10])
    assert sum(drafted) <= 20


@pytest.mark.promise("SPEC-3")
@pytest.mark.parametrize("num_requests", [1, 8])
def test_all_drafts_are_made_where_they_turn_out_to_cost_nothing(num_requests: int) -> None:
    engine = decoding(*"abcdefgh"[:num_requests], max_tokens=2000, max_model_len=4000, num_blocks=4000)
    drafted = [sum(engine.step()[0].num_draft_tokens.values()) for _ in range(200)]
    assert sum(drafted[50:]) >= 0.95 * 150 * 4 * num_requests


@pytest.mark.promise("SPEC-3")
def test_what_large_batches_cost_is_not_taken_for_the_cost_of_drafts_in_small_ones() -> None:
    engine = decoding("a", max_tokens=2000, max_model_len=4000, num_blocks=4000)
    engine.seconds_per_draft = 2.0
    for _ in range(60):
        engine.step()
    for name in "bcdefgh":
        engine.add(name, max_tokens=100)
    while len(engine.step()[0].num_scheduled_tokens) > 1 or engine.scheduler.num_waiting:
        pass
    assert sum(bool(engine.step()[0].num_draft_tokens) for _ in range(50)) <= 5


def test_steps_in_which_a_draft_model_reads_older_text_tell_nothing_about_drafts() -> None:
    engine = decoding("a", max_tokens=2000, max_model_len=4000, num_blocks=4000)
    engine.seconds_per_draft, engine.is_catching_up = 2.0, True
    assert sum(bool(engine.step()[0].num_draft_tokens) for _ in range(30)) >= 25


@pytest.mark.promise("SPEC-3")
def test_positions_sampled_in_a_step_are_bounded() -> None:
    names = [f"r{index:03}" for index in range(60)]
    engine = decoding(*names, max_num_seqs=60, max_num_batched_tokens=600, num_blocks=1000)
    for _ in range(20):  # until rows are known to cost nothing
        engine.now_s += 1.0
        num_drafts = sum(engine.step()[0].num_draft_tokens.values())
        assert num_drafts <= 32


@pytest.mark.promise("SPEC-6")
def test_drafts_are_counted() -> None:
    engine = decoding("a")
    engine.num_right = 1
    outputs = engine.step()[1]
    assert (only(outputs).num_draft_tokens, only(outputs).num_accepted_tokens) == (3, 1)
    stats = outputs.stats
    assert stats is not None
    assert (stats.num_drafts, stats.num_accepted_per_position) == (1, [1, 0, 0, 0])
    assert stats.num_scheduled_tokens == 1 + stats.num_draft_tokens
