"""Exceptions become statuses, types and headers in one place."""

from __future__ import annotations

import json

import pytest

import vllm_mxext.errors as tree
from vllm_mxext.server.errors import RequestTooLargeError, UnauthorizedError, describe


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (tree.InvalidRequestError("x", param="n"), 400, "BadRequestError"),
        (tree.UnsupportedFeatureError("x"), 400, "BadRequestError"),
        (tree.ContextLengthExceededError("x"), 400, "BadRequestError"),
        (UnauthorizedError("x"), 401, "AuthenticationError"),
        (tree.ModelNotFoundError("x"), 404, "NotFoundError"),
        (RequestTooLargeError("x"), 413, "RequestTooLargeError"),
        (tree.QueueFullError("x"), 429, "RateLimitError"),
        (tree.GenerationError("x"), 500, "InternalServerError"),
        (ValueError("x"), 500, "InternalServerError"),
        (tree.EngineNotReadyError("x"), 503, "ServiceUnavailableError"),
        (tree.EngineDeadError("x"), 503, "ServiceUnavailableError"),
    ],
)
def test_each_exception_has_its_status_and_type(error, status, kind):
    reply = describe(error)
    body = json.loads(reply.body())["error"]

    assert (reply.status, body["code"], body["type"]) == (status, status, kind)


def test_every_exception_of_the_tree_is_described_with_its_own_words():
    for name, kind in vars(tree).items():
        if isinstance(kind, type) and issubclass(kind, tree.MxError):
            assert describe(kind(f"Words of {name}.")).message == f"Words of {name}."


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (2.0, "2"), (2.1, "3")])
def test_retry_after_is_whole_seconds_rounded_up(seconds, header):
    reply = describe(tree.QueueFullError("x", retry_after_s=seconds))

    assert reply.headers["Retry-After"] == header


def test_unavailable_servers_say_when_to_come_again():
    assert describe(tree.EngineNotReadyError("x")).headers["Retry-After"] == "1"
