"""The bound of the queue and the time it tells refused clients to wait."""

from __future__ import annotations

import pytest

from vllm_mxext.config.frontend import AdmissionConfig
from vllm_mxext.engine.admission import Admission
from vllm_mxext.errors import InvalidRequestError, QueueFullError


def refused_for(admission: Admission, num_new: int, num_open: int, now_s: float = 0.0) -> float | None:
    try:
        admission.check_samples(num_new, num_open, now_s)
    except QueueFullError as refusal:
        return refusal.retry_after_s
    return None


def test_running_and_waiting_requests_are_admitted_up_to_the_limit() -> None:
    admission = Admission(AdmissionConfig(max_num_queued_reqs=3), max_num_seqs=2)
    assert [refused_for(admission, 1, num_open) is None for num_open in range(7)] == [True] * 5 + [False] * 2


def test_without_limits_everything_is_admitted() -> None:
    admission = Admission(AdmissionConfig(), max_num_seqs=1)
    assert refused_for(admission, 100, 10**6) is None
    admission.check_tokens(10**6, 10**6, 0.0)


def test_a_request_with_more_samples_than_can_ever_be_open_is_invalid() -> None:
    admission = Admission(AdmissionConfig(max_num_queued_reqs=3), max_num_seqs=2)
    assert refused_for(admission, 5, 0) is None
    with pytest.raises(InvalidRequestError, match="at most 5"):
        admission.check_samples(6, 0, 0.0)


def test_the_waiting_time_follows_the_rate_at_which_requests_end() -> None:
    admission = Admission(AdmissionConfig(max_num_queued_reqs=0), max_num_seqs=1)
    assert refused_for(admission, 1, 1) == 1.0
    for second in range(0, 50, 5):
        admission.record_end(float(second))
    assert refused_for(admission, 1, 1, now_s=50.0) == pytest.approx(5.0)
    assert refused_for(admission, 1, 3, now_s=50.0) == pytest.approx(15.0)
    assert refused_for(admission, 1, 1000, now_s=50.0) == 60.0


def test_a_prompt_is_refused_only_while_others_wait() -> None:
    admission = Admission(AdmissionConfig(max_num_queued_tokens=100), max_num_seqs=1)
    admission.check_tokens(500, 0, 0.0)
    admission.check_tokens(50, 50, 0.0)
    with pytest.raises(QueueFullError):
        admission.check_tokens(51, 50, 0.0)
