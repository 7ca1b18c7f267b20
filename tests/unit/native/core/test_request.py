"""What a request makes of what it came with."""

from __future__ import annotations

from tests.unit.native.core.builders import make_request, make_source
from vllm_mxext.native.core.request import Request


def test_tokens_delivered_before_a_resubmission_count_as_output():
    request = make_request(prompt=[1, 2, 3], output_token_ids=[7, 8])
    assert request.token_ids == [1, 2, 3, 7, 8]
    assert (request.num_prompt_tokens, request.num_output_tokens) == (3, 2)
    assert request.output_token_ids == [7, 8]
    assert request.max_total_tokens == 3 + 8


def test_the_context_bounds_the_total_length():
    request = Request(make_source(prompt=[1, 2, 3], max_tokens=50), order_key=(0,), max_model_len=10)
    assert request.max_total_tokens == 10


def test_a_request_does_not_change_the_lists_it_came_with():
    source = make_source(prompt=[1, 2])
    request = Request(source, order_key=(0,), max_model_len=10)
    request.token_ids.append(3)
    assert source.prompt_token_ids == [1, 2]


def test_only_the_first_report_says_how_the_request_came_to_run():
    request = make_request()
    request.added_s, request.scheduled_s, request.num_cached_tokens = 1.0, 1.5, 4
    first, second = request.report([7]), request.report([8])
    assert (first.num_cached_tokens, first.scheduled_after_s) == (4, 0.5)
    assert (second.num_cached_tokens, second.scheduled_after_s) == (None, None)


def test_a_request_that_never_ran_reports_no_waiting_time():
    assert make_request().report([]).scheduled_after_s is None
