"""Definitions: each figure of one request, computed by hand, by our definitions and by those of vLLM and guidellm."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vllm_mxext.bench.serve.definitions import (
    COMPAT_DIFFERENCES,
    FORMULAS,
    chunk_gaps_s,
    e2e_s,
    throughput,
    token_arrivals,
    token_gaps_s,
    tpot_s,
    ttft_s,
)
from vllm_mxext.bench.serve.result import RequestRecord

RECORD = RequestRecord(
    "req_0",
    stage=0,
    is_warmup=False,
    scheduled_s=1.0,
    sent_s=1.5,
    ended_s=4.5,
    written_s=1.625,
    chunk_times_s=(2.0, 3.0, 4.0),
    empty_times_s=(1.75, 4.25),
    output_tokens=6,
    token_source="usage",
)
CLOSED = replace(RECORD, scheduled_s=None)


@pytest.mark.promise("PERF-3")
def test_latencies_count_from_the_schedule_so_that_waiting_is_not_left_out() -> None:
    assert (ttft_s(RECORD), e2e_s(RECORD)) == (1.0, 3.5)
    assert (ttft_s(CLOSED), e2e_s(CLOSED)) == (0.5, 3.0)


@pytest.mark.promise("PERF-3")
def test_tpot_is_the_time_after_the_first_token_over_one_token_less() -> None:
    assert tpot_s(CLOSED) == tpot_s(RECORD) == 2.5 / 5


@pytest.mark.promise("PERF-3")
@pytest.mark.parametrize("changes", [{"output_tokens": 1}, {"output_tokens": None}, {"chunk_times_s": ()}])
def test_tpot_is_absent_where_there_is_none(changes: dict[str, object]) -> None:
    assert tpot_s(replace(RECORD, **changes)) is None  # type: ignore[arg-type]


def test_ttft_is_absent_without_streaming() -> None:
    assert ttft_s(replace(RECORD, chunk_times_s=())) is None


@pytest.mark.promise("PERF-3")
def test_chunk_gaps_are_not_token_gaps() -> None:
    assert chunk_gaps_s(RECORD) == [1.0, 1.0]
    assert token_gaps_s(RECORD) == []
    assert token_gaps_s(replace(RECORD, chunk_tokens=(1, 2, 3))) == [0.5, 0.5, 1 / 3, 1 / 3, 1 / 3]


@pytest.mark.parametrize("tokens", [3, 4])
def test_chunk_gaps_are_token_gaps_if_every_chunk_is_a_token(tokens: int) -> None:
    assert token_gaps_s(replace(RECORD, output_tokens=tokens)) == [1.0, 1.0]


@pytest.mark.promise("PERF-4")
def test_vllm_counts_from_sending_over_all_events_with_a_choice() -> None:
    assert (ttft_s(RECORD, "vllm"), e2e_s(RECORD, "vllm")) == (0.25, 2.75)
    assert tpot_s(RECORD, "vllm") == 2.5 / 5
    assert chunk_gaps_s(RECORD, "vllm") == [0.25, 1.0, 1.0, 0.25]


@pytest.mark.promise("PERF-4")
def test_vllm_counts_events_that_came_together_and_those_between() -> None:
    together = replace(RECORD, empty_times_s=(1.75, 2.5, 4.0))
    assert chunk_gaps_s(together, "vllm") == [0.25, 0.5, 0.5, 1.0, 0.0]


@pytest.mark.promise("PERF-4")
def test_vllm_has_a_first_token_where_no_event_has_text() -> None:
    silent = replace(RECORD, chunk_times_s=(), output_tokens=1)
    assert ttft_s(silent) is None
    assert ttft_s(silent, "vllm") == 0.25


@pytest.mark.promise("PERF-4")
def test_guidellm_counts_from_writing_and_has_the_first_token_in_tpot() -> None:
    assert (ttft_s(RECORD, "guidellm"), e2e_s(RECORD, "guidellm")) == (0.375, 2.875)
    assert tpot_s(RECORD, "guidellm") == 2.375 / 6
    assert token_gaps_s(RECORD, "guidellm") == [2.0 / 5]


@pytest.mark.promise("PERF-4")
def test_guidellm_has_a_tpot_without_streaming() -> None:
    assert tpot_s(replace(RECORD, chunk_times_s=()), "guidellm") == 2.875 / 6


def test_throughput_of_a_request_counts_from_sending() -> None:
    assert throughput(RECORD) == 2.0
    assert throughput(replace(RECORD, output_tokens=None)) is None


def test_tokens_arrive_with_their_chunks() -> None:
    assert token_arrivals(RECORD) == [(2.0, 2.0), (3.0, 2.0), (4.0, 2.0)]
    assert token_arrivals(replace(RECORD, chunk_tokens=(1, 2, 3)))[2] == (4.0, 3.0)
    assert token_arrivals(replace(RECORD, chunk_times_s=())) == [(4.5, 6.0)]


def test_every_changed_formula_is_one_of_ours() -> None:
    names = {name for name, _ in FORMULAS}
    assert all(name in names for changed in COMPAT_DIFFERENCES.values() for name, _ in changed)
