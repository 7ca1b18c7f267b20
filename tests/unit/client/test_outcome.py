"""What failures mean: where to try again, who is to blame, what the caller reads."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_mxext.client.errors import BadRequestError, RateLimitedError, ServerError, StatusError
from vllm_mxext.client.outcome import Judgement, Retry, error_object, judge_status, reason_of, status_error, status_of

pytestmark = pytest.mark.promise("CLIENT-1")


@pytest.mark.parametrize(
    ("status", "headers", "reason", "judgement"),
    [
        (429, {}, "", Judgement(Retry.ANYWHERE, is_throttled=True, was_received=False)),
        (503, {"retry-after": "1"}, "", Judgement(Retry.ANYWHERE, is_throttled=True, was_received=False)),
        (503, {}, "", Judgement(Retry.ANYWHERE, was_received=False)),
        (500, {}, "", Judgement(Retry.ANYWHERE)),
        (504, {}, "", Judgement(Retry.ANYWHERE)),
        (504, {}, "deadline_exceeded", Judgement(Retry.NEVER, is_endpoints_fault=False)),
        (501, {}, "", Judgement(Retry.NEVER, is_endpoints_fault=False)),
        (400, {}, "", Judgement(Retry.NEVER, is_endpoints_fault=False)),
        (408, {}, "", Judgement(Retry.ANYWHERE, is_endpoints_fault=False)),
        (500, {"x-should-retry": "false"}, "", Judgement(Retry.NEVER)),
        (400, {"x-should-retry": "true"}, "", Judgement(Retry.ANYWHERE, is_endpoints_fault=False)),
    ],
)
def test_a_status_says_where_to_try_again_and_who_is_to_blame(
    status: int, headers: dict[str, str], reason: str, judgement: Judgement
) -> None:
    assert judge_status(status, headers, reason) == judgement


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"error": {"message": "m", "code": 404}}, 404, ""),
        ({"error": {"message": "m", "code": "429"}}, 429, ""),
        ({"error": {"message": "m", "type": "RateLimitError", "reason": "queue_full"}}, 429, "queue_full"),
        ({"error": {"message": "m", "type": "x", "code": "context_length_exceeded"}}, 500, "context_length_exceeded"),
        ({"error": "plain words"}, 500, ""),
        ({"object": "error", "message": "m", "type": "BadRequestError", "code": 400}, 400, ""),
    ],
)
def test_an_error_inside_an_answer_is_found_in_every_form(body: dict[str, Any], status: int, reason: str) -> None:
    error = error_object(body)
    assert error is not None
    assert (status_of(error), reason_of(body)) == (status, reason)


@pytest.mark.parametrize("body", [{"error": None}, {"error": {}}, {"choices": []}, [], "error", None])
def test_a_good_answer_is_no_error(body: object) -> None:
    assert error_object(body) is None


@pytest.mark.parametrize(
    ("status", "kind"), [(400, BadRequestError), (429, RateLimitedError), (502, ServerError), (418, StatusError)]
)
def test_the_error_has_the_class_of_its_status(status: int, kind: type[StatusError]) -> None:
    error = status_error(status, {"error": {"message": "why."}}, {"x-request-id": "r"}, "http://a")
    assert type(error) is kind
    assert str(error).startswith(f"http://a answered {status} (why); ")
    assert (error.status, error.request_id) == (status, "r")


def test_what_a_server_has_not_is_not_to_be_tried_later() -> None:
    said = {
        "error": {"code": 501, "message": "This server does not support embeddings.", "type": "not_supported_error"}
    }
    error = status_error(501, said, {}, "http://a")
    assert str(error).endswith("(This server does not support embeddings); ask a server that has this.")


def test_a_long_or_foreign_message_does_not_flood_the_error() -> None:
    assert len(str(status_error(500, "x" * 10_000, {}, "http://a"))) < 700
    assert "<html" not in str(status_error(502, "<html>Bad gateway</html>", {}, "http://a"))
