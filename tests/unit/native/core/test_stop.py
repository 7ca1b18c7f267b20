"""Which token ends a request, and how."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_mxext.constraint_params import RepetitionDetectionParams
from vllm_mxext.native.core.stop import Stop, ends_in_repetition, find_stop
from vllm_mxext.native.protocol import FinishReason
from vllm_mxext.sampling_params import SamplingParams

EOS, STOP_ID, OTHER = 2, 5, 9


def stop_after(
    token_id: int, *, num_output_tokens: int = 4, num_remaining_tokens: int = 10, **params: object
) -> Stop | None:
    return find_stop(
        [OTHER, token_id],
        params=SamplingParams(max_tokens=100, **params),
        eos_token_ids=[EOS],
        num_output_tokens=num_output_tokens,
        num_remaining_tokens=num_remaining_tokens,
    )


def test_an_ordinary_token_goes_on():
    assert stop_after(OTHER, stop_token_ids=(STOP_ID,)) is None


def test_end_of_text_stops_without_a_stop_reason():
    assert stop_after(EOS) == Stop(FinishReason.STOP, None)


def test_a_stop_token_stops_with_its_id():
    assert stop_after(STOP_ID, stop_token_ids=(OTHER, STOP_ID)) == Stop(FinishReason.STOP, STOP_ID)


def test_end_of_text_goes_on_with_ignore_eos():
    assert stop_after(EOS, ignore_eos=True) is None


def test_end_of_text_named_as_stop_token_stops_in_spite_of_ignore_eos():
    assert stop_after(EOS, ignore_eos=True, stop_token_ids=(EOS,)) == Stop(FinishReason.STOP, EOS)


@pytest.mark.parametrize("token_id", [EOS, STOP_ID])
def test_no_token_stops_before_min_tokens(token_id):
    assert stop_after(token_id, num_output_tokens=2, min_tokens=3, stop_token_ids=(STOP_ID,)) is None
    assert stop_after(token_id, num_output_tokens=3, min_tokens=3, stop_token_ids=(STOP_ID,)) is not None


def test_the_last_token_there_is_room_for_ends_with_length():
    assert stop_after(OTHER, num_remaining_tokens=1) is None
    assert stop_after(OTHER, num_remaining_tokens=0) == Stop(FinishReason.LENGTH)


def test_length_holds_below_min_tokens():
    assert stop_after(EOS, num_output_tokens=2, min_tokens=3, num_remaining_tokens=0) == Stop(FinishReason.LENGTH)


def test_a_stop_at_the_last_possible_token_is_a_stop():
    assert stop_after(EOS, num_remaining_tokens=0) == Stop(FinishReason.STOP)


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=24),
    st.integers(0, 24),
    st.tuples(st.integers(1, 5), st.integers(0, 5)),
    st.integers(2, 4),
)
def test_a_repetition_is_a_pattern_that_stands_at_the_end_of_the_output_often_enough(
    token_ids, num_prompt, size, count
):
    output = token_ids[min(num_prompt, len(token_ids) - 1) :]
    smallest, largest = size[0], size[0] + size[1]
    rule = RepetitionDetectionParams(largest, smallest, count)
    expected = any(
        len(output) >= n * count and output[-n * count :] == output[-n:] * count for n in range(smallest, largest + 1)
    )
    assert ends_in_repetition(token_ids, len(output), rule) is expected


def test_a_repetition_ends_the_output_with_a_reason_of_its_own_but_not_before_min_tokens():
    params = SamplingParams(max_tokens=100, min_tokens=3, repetition_detection=RepetitionDetectionParams(2, 1, 3))
    stops = [
        find_stop([OTHER] * n, params=params, eos_token_ids=[EOS], num_output_tokens=n, num_remaining_tokens=9)
        for n in (2, 3)
    ]
    assert stops == [None, Stop(FinishReason.REPETITION)]
