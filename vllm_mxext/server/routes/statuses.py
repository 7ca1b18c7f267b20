"""The statuses and types of answers that each kind of route has, for the OpenAPI description."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from pydantic import BaseModel

Responses = dict[int | str, dict[str, Any]]


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorBody(BaseModel):
    """Body of every answer that is not a success."""

    error: ErrorDetail


def _errors(*statuses: int) -> Responses:
    return {status: {"model": ErrorBody, "description": HTTPStatus(status).phrase} for status in statuses}


ANY = _errors(401, 500, 503)
"""Any route: no key, a failure, an engine that is not there."""

NAMED = ANY | _errors(404)
"""A route that names a model."""

WITH_BODY = NAMED | _errors(400, 413)
"""A route that takes a body."""

GENERATION: Responses = {
    **WITH_BODY,
    **_errors(429, 504),
    200: {"description": "The answer; a stream of events if `stream` is true.", "content": {"text/event-stream": {}}},
}
"""A route that generates."""

FIGURES: Responses = {
    **ANY,
    200: {
        "description": "The figures in a format that `Accept` asks for.",
        "content": {"text/plain": {}, "application/openmetrics-text": {}},
    },
}
"""The route of the metrics."""
