"""What routes take and answer, for the OpenAPI description: bodies, statuses and types."""

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

UPDATE: Responses = {
    **WITH_BODY,
    **_errors(403),
    200: {"description": "It is done; `message` says so."},
}
"""A route that changes what is served."""

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


def json_body(*names: str) -> dict[str, Any]:
    """Describes a body that is one of the models of these names."""
    schemas = [{"$ref": f"#/components/schemas/{name}"} for name in names]
    schema = schemas[0] if len(schemas) == 1 else {"oneOf": schemas}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
