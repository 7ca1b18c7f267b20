"""The model runner on a model of seeded noise."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from vllm_mxext.config.engine import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from vllm_mxext.config.model_spec import parse_model_spec
from vllm_mxext.errors import ConfigError, EngineNotReadyError
from vllm_mxext.native.kernels.selection import select_kernels
from vllm_mxext.native.protocol import CachedRequestData, NewRequestData, SchedulerOutput
from vllm_mxext.native.worker.model_runner import ModelRunner
from vllm_mxext.sampling_params import SamplingParams

VALUES = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def make_runner(**limits: Any) -> ModelRunner:
    model = ModelConfig(Path("noise"), Path("noise"), parse_model_spec(VALUES), "float32", 64, load_format="dummy")
    return ModelRunner(EngineConfig(model, CacheConfig(num_blocks_override=40), SchedulerConfig(**limits)))


@pytest.fixture
def runner() -> ModelRunner:
    runner = make_runner()
    runner.load()
    return runner


def new_request(request_id: str, token_ids: list[int], block_id: int, **params: Any) -> NewRequestData:
    return NewRequestData(
        request_id=request_id,
        token_ids=token_ids,
        num_prompt_tokens=len(token_ids),
        params=SamplingParams(**params),
        seed=5,
        eos_token_ids=[],
        block_ids=[block_id],
        num_computed_tokens=0,
    )


def first_step(*new: NewRequestData, counts: dict[str, int] | None = None) -> SchedulerOutput:
    counts = counts or {request.request_id: len(request.token_ids) for request in new}
    return SchedulerOutput(list(new), [], counts, sum(counts.values()))


def test_nothing_works_before_loading() -> None:
    runner = make_runner()
    for use in (lambda: runner.num_blocks, runner.memory_report, lambda: runner.execute(SchedulerOutput())):
        with pytest.raises(EngineNotReadyError, match="not loaded"):
            use()


@pytest.mark.promise("MEM-1")
def test_the_plan_is_logged_before_anything_is_loaded(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vllm_mxext"):
        make_runner().load()
    assert "weights" in caplog.messages[0]
    assert "40 blocks" in caplog.messages[0]


def test_progress_runs_from_zero_to_one() -> None:
    fractions: list[float] = []
    make_runner().load(fractions.append)
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)


def test_blocks_are_those_of_the_plan(runner: ModelRunner) -> None:
    assert runner.num_blocks == runner.memory_report().plan.num_blocks == 40


def test_a_head_size_that_kernels_cannot_run_is_refused_before_weights_are_read() -> None:
    spec = parse_model_spec({**VALUES, "head_dim": 1024})
    model = ModelConfig(Path("absent"), Path("absent"), spec, "float32", 64)
    runner = ModelRunner(EngineConfig(model, CacheConfig(num_blocks_override=40)))
    message = "absent has no" if select_kernels(torch.device("cpu"), torch.float32).name == "torch" else "head size"
    with pytest.raises(ConfigError, match=message):
        runner.load()


def test_only_requests_that_have_caught_up_sample(runner: ModelRunner) -> None:
    whole, part = new_request("whole", [1, 2, 3], 1), new_request("part", [4, 5, 6], 2)
    result = runner.execute(first_step(whole, part, counts={"whole": 3, "part": 2}))
    assert list(result.sampled_token_ids) == ["whole"]


def test_a_step_without_samples_gives_an_empty_result(runner: ModelRunner) -> None:
    result = runner.execute(first_step(new_request("part", [4, 5, 6], 2), counts={"part": 2}))
    assert result.sampled_token_ids == {}
    assert result.logprobs == {}


def test_a_step_without_tokens_only_drops_rows(runner: ModelRunner) -> None:
    runner.execute(first_step(new_request("r", [1, 2], 1)))
    assert runner.execute(SchedulerOutput(finished_request_ids=["r"])).sampled_token_ids == {}
    again = runner.execute(first_step(new_request("r", [1, 2], 1)))
    assert list(again.sampled_token_ids) == ["r"]


def test_sampled_tokens_are_fed_back_without_being_sent(runner: ModelRunner) -> None:
    params: dict[str, Any] = {"temperature": 0.0}
    first = runner.execute(first_step(new_request("r", [9, 8, 7], 1, **params))).sampled_token_ids["r"]
    step = SchedulerOutput([], [CachedRequestData("r", [], 3)], {"r": 1}, 1)
    second = runner.execute(step).sampled_token_ids["r"]
    whole = runner.execute(first_step(new_request("copy", [9, 8, 7, *first], 2, **params)))
    assert whole.sampled_token_ids["copy"] == second


def test_seeded_sampling_does_not_depend_on_the_batch(runner: ModelRunner) -> None:
    params: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9}
    alone = runner.execute(first_step(new_request("a", [3, 1, 4], 1, **params))).sampled_token_ids["a"]
    neighbours = [new_request(f"n{i}", [i, i + 1], 10 + i, temperature=2.0) for i in range(4)]
    step = first_step(*neighbours, new_request("b", [3, 1, 4], 2, **params))
    assert runner.execute(step).sampled_token_ids["b"] == alone


def test_logprobs_are_given_to_those_who_asked(runner: ModelRunner) -> None:
    asked, silent = new_request("asked", [1, 2], 1, logprobs=3), new_request("silent", [1, 2], 2)
    result = runner.execute(first_step(asked, silent))
    assert list(result.logprobs) == ["asked"]
    (entry,) = result.logprobs["asked"]
    assert entry.token_ids[0] == result.sampled_token_ids["asked"][0]
    assert len(entry.token_ids) == 4


def test_a_full_batch_with_a_full_budget_runs() -> None:
    runner = make_runner(max_num_seqs=3, max_num_batched_tokens=9)
    runner.load()
    result = runner.execute(first_step(*(new_request(f"r{i}", [1, 2, i], i + 1) for i in range(3))))
    assert len(result.sampled_token_ids) == 3
