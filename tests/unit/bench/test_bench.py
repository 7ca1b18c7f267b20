"""Workloads, figures and reports of the bench code."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from vllm_mxext.bench.metrics import percentile, summarize
from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.bench.serving import ServingResult, StreamTimes, measure_server
from vllm_mxext.bench.workload import Workload
from vllm_mxext.errors import ConfigError, EngineError


def test_a_workload_is_read_as_it_is_written() -> None:
    workload = Workload.parse("8x(128->64)")
    assert workload == Workload(8, 128, 64)
    assert Workload.parse(str(workload)) == workload
    assert Workload.parse(" 8 x (128 -> 64) ") == workload


@pytest.mark.parametrize(
    "text", ["", "8", "8x128->64", "0x(1->1)", "1x(1->0)", "1x(1->1)x", "2x(0+1->1)", "2x(1+->1)", "2x(1+2+3->1)"]
)
def test_other_forms_of_a_workload_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="8x"):
        Workload.parse(text)


def test_equal_seeds_give_equal_prompts_from_the_alphabet() -> None:
    workload = Workload(3, 5, 1)
    prompts = workload.prompts(range(10, 20), seed=1)
    assert prompts == workload.prompts(range(10, 20), seed=1) != workload.prompts(range(10, 20), seed=2)
    assert [len(prompt) for prompt in prompts] == [5, 5, 5]
    assert {token for prompt in prompts for token in prompt} <= set(range(10, 20))


def test_prompts_may_have_a_common_beginning() -> None:
    workload = Workload.parse("3x(20+5->7)")
    assert workload == Workload(3, 25, 7, shared_len=20)
    assert str(workload) == "3x(20+5->7)"
    first, *others = workload.prompts(range(1000), seed=0)
    assert all(prompt[:20] == first[:20] and prompt[20:] != first[20:] for prompt in others)
    assert {len(prompt) for prompt in (first, *others)} == {25}
    assert (workload.num_positions, Workload(3, 25, 7).num_positions) == (20 + 3 * 12, 3 * 32)


@pytest.mark.parametrize(("percent", "expected"), [(0, 1.0), (50, 2.5), (100, 4.0), (95, 3.85)])
def test_percentiles_are_interpolated(percent: float, expected: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], percent) == pytest.approx(expected)


def test_a_summary_has_median_mean_and_spread() -> None:
    summary = summarize([3.0, 1.0, 2.0, 10.0])
    assert (summary.median, summary.mean, summary.minimum, summary.maximum, summary.count) == (2.5, 4.0, 1.0, 10.0, 4)


def test_tables_are_aligned() -> None:
    assert format_table(("name", "x"), [("a", 1.23456), ("long name", 12345.6)]).splitlines() == [
        "name       x",
        "---------  -----",
        "a          1.235",
        "long name  12346",
    ]


def test_the_last_line_says_what_ran_where() -> None:
    entry = json.loads(json_line("demo", {"seed": 1}, {"seconds": 2}))
    assert entry["benchmark"] == "demo"
    assert {"commit", "versions", "hardware", "config", "results"} < set(entry)


def test_time_per_output_token_leaves_out_the_first() -> None:
    assert StreamTimes(ttft_s=1.0, e2e_s=3.0, num_output_tokens=5).tpot_s == 0.5
    assert StreamTimes(ttft_s=1.0, e2e_s=1.0, num_output_tokens=1).tpot_s is None


def test_throughput_counts_tokens_and_not_chunks() -> None:
    figures = ServingResult(2.0, (StreamTimes(0.1, 1.0, 10), StreamTimes(0.1, 2.0, 30))).figures()
    assert (figures["output_tokens_per_s"], figures["requests_per_s"]) == (20.0, 1.0)


def client_that_answers(text: str, status: int = 200) -> httpx.AsyncClient:
    def answer(request: httpx.Request) -> httpx.Response:
        assert json.loads(request.content)["stream_options"] == {"include_usage": True}
        return httpx.Response(status, text=text)

    return httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://server")


def events(*objects: dict[str, Any]) -> str:
    return "".join(f"data: {json.dumps(entry)}\n\n" for entry in objects) + "data: [DONE]\n\n"


async def test_tokens_of_a_stream_come_from_the_servers_usage() -> None:
    text = ": comment\n\n" + events(
        {"choices": [{"text": "many tokens"}]}, {"choices": [], "usage": {"completion_tokens": 7}}
    )
    async with client_that_answers(text) as client:
        result = await measure_server(client, [{"prompt": "a"}, {"prompt": "b"}], 1)
    assert [stream.num_output_tokens for stream in result.streams] == [7, 7]
    assert all(0 < stream.ttft_s <= stream.e2e_s for stream in result.streams)


@pytest.mark.parametrize(
    ("text", "status", "part"),
    [
        ("no", 500, "answered 500"),
        (events({"error": {"message": "died"}}), 200, "died"),
        (events({"choices": [{"text": "x"}]}), 200, "no usage"),
    ],
)
async def test_a_failing_server_fails_the_measurement(text: str, status: int, part: str) -> None:
    async with client_that_answers(text, status) as client:
        with pytest.raises(EngineError, match=part):
            await measure_server(client, [{}], 1)
