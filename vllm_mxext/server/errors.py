"""The one place where exceptions become HTTP statuses and error objects."""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from vllm_mxext.errors import (
    AdapterConflictError,
    AdapterError,
    ContextLengthExceededError,
    DeadlineExceededError,
    EngineDeadError,
    EngineNotReadyError,
    InvalidRequestError,
    ModelNotFoundError,
    MxError,
    QueueFullError,
    RequestError,
)

MAX_REPORTED_ERRORS = 10
MAX_REPORTED_INPUT_CHARS = 200

TYPE_OF_STATUS = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    413: "RequestTooLargeError",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
    504: "TimeoutError",
}

_UNION_ARMS = ("str", "none")
"""Steps of an error's path that name an arm of a union, not a field; other arms are no identifiers."""


class UnauthorizedError(RequestError):
    """No valid API key was presented."""


class ForbiddenError(RequestError):
    """Nobody may do this at this server, as it was started."""


class RequestTooLargeError(RequestError):
    """The body is larger than the server takes."""


class MalformedRequestError(InvalidRequestError):
    """The body does not have the documented shape: not JSON, or fields of wrong types."""


_REQUEST_ERRORS: tuple[tuple[type[RequestError], int, str | None], ...] = (
    (QueueFullError, 429, "queue_full"),
    (ModelNotFoundError, 404, "model_not_found"),
    (UnauthorizedError, 401, "invalid_api_key"),
    (ForbiddenError, 403, None),
    (RequestTooLargeError, 413, None),
    (ContextLengthExceededError, 400, "context_length_exceeded"),
)
"""Request errors that are not plain 400s: class, status, reason."""


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """An error as the client sees it.

    Attributes:
        status: HTTP status.
        message: one clear sentence.
        type: kind of error.
        param: the offending field.
        reason: machine-readable cause, in the words of OpenAI's `code`, where clients look for one.
        headers: further response headers.
    """

    status: int
    message: str
    type: str
    param: str | None = None
    reason: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        """Returns the error object as JSON."""
        error: dict[str, Any] = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.status,
        }
        if self.reason is not None:
            error["reason"] = self.reason
        return orjson.dumps({"error": error})

    def response(self) -> Response:
        """Returns the reply as an HTTP response."""
        return Response(self.body(), self.status, self.headers, "application/json")


def describe(error: Exception) -> ErrorReply:
    """Returns the reply for an exception; anything unexpected is a 500 that gives nothing away."""
    if isinstance(error, RequestError):
        return _describe_request_error(error)
    if isinstance(error, (EngineNotReadyError, EngineDeadError)):
        return _reply(503, str(error), headers={"Retry-After": "1"})
    if isinstance(error, DeadlineExceededError):
        return _reply(504, str(error), "timeout_ms", "deadline_exceeded")
    if isinstance(error, MxError):
        return _reply(500, str(error))
    if isinstance(error, HTTPException):
        return _reply(error.status_code, str(error.detail), headers=dict(error.headers or {}))
    return _reply(500, "The server failed on this request; its log says why, under the id in the X-Request-Id header.")


def _describe_request_error(error: RequestError) -> ErrorReply:
    message, param = str(error), error.param
    if isinstance(error, MalformedRequestError):
        return ErrorReply(400, message, "Bad Request", param)
    if isinstance(error, (AdapterError, AdapterConflictError)):
        return ErrorReply(400, message, "InvalidUserInput", param)  # as vLLM calls it
    headers = {}
    if isinstance(error, QueueFullError):
        headers["Retry-After"] = str(math.ceil(max(1.0, error.retry_after_s)))
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    for kind, status, reason in _REQUEST_ERRORS:
        if isinstance(error, kind):
            return _reply(status, message, param, reason, headers)
    return _reply(400, message, param)


def _reply(
    status: int,
    message: str,
    param: str | None = None,
    reason: str | None = None,
    headers: dict[str, str] | None = None,
) -> ErrorReply:
    kind = TYPE_OF_STATUS.get(status, "BadRequestError" if status < 500 else "InternalServerError")
    return ErrorReply(status, message, kind, param, reason, headers or {})


def malformed(error: ValidationError) -> MalformedRequestError:
    """Turns what pydantic found into one error: at most 10 findings, 200 characters of input each."""
    findings = error.errors(include_url=False, include_context=False)
    sentences = []
    for finding in findings[:MAX_REPORTED_ERRORS]:
        where = _location(finding["loc"])
        text = finding["msg"].removeprefix("Value error, ")
        given = "" if finding["type"] == "missing" else f" (got {_shorten(finding['input'])})"
        sentences.append(f"{where}: {text}{given}" if where else f"{text}{given}")
    if len(findings) > MAX_REPORTED_ERRORS:
        sentences.append(f"and {len(findings) - MAX_REPORTED_ERRORS} more")
    param = _location(findings[0]["loc"]) or None
    return MalformedRequestError("; ".join(sentences), param=param)


def _location(path: tuple[int | str, ...]) -> str:
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() and part not in _UNION_ARMS:
            text += f".{part}" if text else part
    return text


def _shorten(value: object) -> str:
    limits = reprlib.Repr()
    limits.maxstring = limits.maxother = MAX_REPORTED_INPUT_CHARS
    text = limits.repr(value)
    return text if len(text) <= MAX_REPORTED_INPUT_CHARS else text[: MAX_REPORTED_INPUT_CHARS - 3] + "..."


def describe_http(request: Request, error: HTTPException) -> ErrorReply:
    """Returns the reply for what the router has to say: unknown paths and wrong methods."""
    headers = dict(error.headers or {})
    asked = f"{request.method} {request.scope['path'][:MAX_REPORTED_INPUT_CHARS]}"
    if error.status_code == 404:
        return _reply(404, f"There is no endpoint `{asked}`; GET /openapi.json lists those there are.")
    if error.status_code == 405:
        return _reply(405, f"`{asked}` is not allowed; use {headers.get('Allow', 'another method')}.", headers=headers)
    return describe(error)
