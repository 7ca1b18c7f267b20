"""What one attempt's failure means: which error the caller sees, whether another attempt may follow, who is to blame.

The classes of what may be tried again are those of OpenAI's own client (408, 409, 429, 5xx, connections, the header
`x-should-retry`), with 425, and without what is certain to fail again: 501, 505, and a deadline that the caller set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from vllm_mxext.backoff import retry_after_s
from vllm_mxext.client.errors import (
    AuthenticationError,
    BadRequestError,
    ClientError,
    ConnectionFailedError,
    NotFoundError,
    ProtocolError,
    RateLimitedError,
    ServerError,
    StatusError,
    TimeoutExceededError,
)

MAX_TEXT_CHARS = 500
"""Of a server's message, in ours."""

_MIN_SECRET_CHARS = 6
"""Shorter ones are words such as `none`, and no secrets."""

_CREDENTIAL = re.compile("auth|key|token|secret|cookie", re.IGNORECASE)
"""In the name of a header that holds a secret."""

_HOPELESS = (501, 505)
_TRANSIENT = (408, 409, 425)
_TYPE_TO_STATUS = {
    "badrequesterror": 400,
    "bad request": 400,
    "invalid_request_error": 400,
    "invaliduserinput": 400,
    "authenticationerror": 401,
    "authentication_error": 401,
    "permissiondeniederror": 403,
    "notfounderror": 404,
    "not_found_error": 404,
    "ratelimiterror": 429,
    "rate_limit_error": 429,
    "serviceunavailableerror": 503,
    "timeouterror": 504,
}
"""Types of error objects without a status of their own, as this server, vLLM and OpenAI name them."""


class Retry(Enum):
    """Where an attempt that failed may be made again.

    Attributes:
        NEVER: it would fail again, or might have an effect twice.
        ELSEWHERE: at another endpoint; this one would say the same.
        ANYWHERE: here too.
    """

    NEVER = 0
    ELSEWHERE = 1
    ANYWHERE = 2


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a failure means for the policies.

    Attributes:
        retry: where it may be tried again.
        is_endpoints_fault: False = neutral for the breaker: the request was wrong, the server is well.
        is_throttled: the server says that it has too much to do.
        was_received: the server may have begun to work on it.
    """

    retry: Retry
    is_endpoints_fault: bool = True
    is_throttled: bool = False
    was_received: bool = True


class AttemptFailedError(Exception):
    """One attempt has failed; stays inside the client.

    Attributes:
        error: what the caller sees if nothing better follows.
        judgement: what it means.
        retry_after_s: what the server asks for; None if it does not.
        endpoint_id: who failed.
    """

    def __init__(self, error: ClientError, judgement: Judgement, retry_after_s: float | None = None) -> None:
        super().__init__(type(error).__name__, error.status)  # no text of the server's: retries are logged
        self.error = error
        self.judgement = judgement
        self.retry_after_s = retry_after_s
        self.endpoint_id = ""


def judge_status(status: int, headers: Mapping[str, str], reason: str = "") -> Judgement:
    """Returns what an error's status means.

    Args:
        status: of HTTP.
        headers: of the answer, lower-case names.
        reason: the server's machine-readable cause.
    """
    if status == 429 or (status == 503 and ("retry-after" in headers or "retry-after-ms" in headers)):
        judgement = Judgement(Retry.ANYWHERE, is_throttled=True, was_received=False)
    elif status in _HOPELESS or reason == "deadline_exceeded":
        judgement = Judgement(Retry.NEVER, is_endpoints_fault=False)
    elif status in _TRANSIENT:
        judgement = Judgement(Retry.ANYWHERE, is_endpoints_fault=False)
    elif status >= 500:
        judgement = Judgement(Retry.ANYWHERE, was_received=status != 503)
    else:
        judgement = Judgement(Retry.NEVER, is_endpoints_fault=False)
    wish = headers.get("x-should-retry", "").lower()
    if wish not in ("true", "false"):
        return judgement
    retry = Retry.ANYWHERE if wish == "true" else Retry.NEVER
    return Judgement(retry, judgement.is_endpoints_fault, judgement.is_throttled, judgement.was_received)


def status_error(status: int, body: object, headers: Mapping[str, str], endpoint: str) -> StatusError:
    """Returns the error for a status.

    Args:
        status: of HTTP, or of the error object in an answer.
        body: of the answer: parsed JSON or text.
        headers: of the answer, lower-case names.
        endpoint: the server's address, for the message.
    """
    said = _text_of(body)
    message = f"{endpoint} answered {status}{f' ({said})' if said else ''}; {_advice(status)}"
    kind: type[StatusError] = StatusError
    if status in (400, 413, 422):
        kind = BadRequestError
    elif status in (401, 403):
        kind = AuthenticationError
    elif status == 404:
        kind = NotFoundError
    elif status == 429:
        kind = RateLimitedError
    elif status >= 500:
        kind = ServerError
    error = kind(message, status=status, request_id=request_id(headers, body), code=reason_of(body))
    if isinstance(error, RateLimitedError):
        error.retry_after_s = retry_after_s(headers)
    return error


def error_object(body: object) -> Mapping[str, Any] | None:
    """Returns the error inside an answer, OpenAI's `{"error": …}` or the flat one of older servers; None = none."""
    if not isinstance(body, Mapping):
        return None
    error = body.get("error")
    if isinstance(error, Mapping) and error:
        return error
    if isinstance(error, str) and error:
        return {"message": error}
    if body.get("object") == "error":
        return body
    return None


def status_of(error: Mapping[str, Any]) -> int:
    """Returns the status that an error object stands for, 500 if it does not say."""
    for key in ("code", "status"):
        value = error.get(key)
        if isinstance(value, str) and len(value) == 3 and value.isascii() and value.isdigit():
            value = int(value)
        if isinstance(value, int) and 400 <= value < 600:
            return value
    return _TYPE_TO_STATUS.get(str(error.get("type", "")).lower(), 500)


def reason_of(body: object) -> str:
    """Returns the machine-readable cause in an error's answer: `reason` (this server), or `code` where it is a word."""
    error = error_object(body) or {}
    for key in ("reason", "code"):
        value = error.get(key)
        if isinstance(value, str) and not value.isdigit():
            return value
    return ""


def request_id(headers: Mapping[str, str], body: object = None) -> str:
    """Returns the server's name for a request; the answer's own id if no header has one."""
    named = headers.get("x-request-id", "")
    if not named and isinstance(body, Mapping) and isinstance(body.get("id"), str):
        return str(body["id"])
    return named


def mask(error: ClientError, secrets: Sequence[str]) -> None:
    """Takes secrets out of what a server has said, which is what it was sent, sometimes.

    Args:
        error: what the caller will see.
        secrets: that it was sent.
    """
    error.args = (masked(str(error), secrets),)
    error.code = masked(error.code, secrets)
    error.request_id = masked(error.request_id, secrets)


def masked(text: str, secrets: Sequence[str]) -> str:
    """Returns what a server has said without secrets.

    Args:
        text: its own.
        secrets: of the endpoint; the beginning of one may be the end of a text that was too long.
    """
    for secret in secrets:
        if len(secret) >= _MIN_SECRET_CHARS and secret[:_MIN_SECRET_CHARS].casefold() in text.casefold():
            cut = "|".join(re.escape(secret[:num]) + "…" for num in range(len(secret) - 1, _MIN_SECRET_CHARS - 1, -1))
            text = re.sub(re.escape(secret) + (f"|{cut}" if cut else ""), "***", text, flags=re.IGNORECASE)
    return text


def credentials(headers: Mapping[str, str]) -> Iterator[str]:
    """Yields the secrets that are sent in headers."""
    for name, value in headers.items():
        if _CREDENTIAL.search(name):
            yield value.rpartition(" ")[2]  # of `Bearer …`


def connection_failed(endpoint: str, problem: str, *, was_received: bool) -> AttemptFailedError:
    """Returns the failure of a connection that could not be made, or that broke.

    Args:
        endpoint: the server's address.
        problem: what went wrong, in words.
        was_received: the request may have reached the server.
    """
    error = ConnectionFailedError(f"{endpoint}: {problem}; check that the server runs and that the address is right.")
    return AttemptFailedError(error, Judgement(Retry.ANYWHERE, was_received=was_received))


def timed_out(endpoint: str, limit: str, seconds: float, *, was_received: bool) -> AttemptFailedError:
    """Returns the failure of an attempt whose `limit` ("connect", "first token", …) was reached."""
    error = TimeoutExceededError(
        f"{endpoint} took longer than the {limit} limit of {seconds:g} s; raise that limit, or lower the load."
    )
    return AttemptFailedError(error, Judgement(Retry.ANYWHERE, was_received=was_received))


def protocol_failed(
    endpoint: str, problem: str, *, status: int | None = None, request_id: str = "", retry: Retry = Retry.ELSEWHERE
) -> AttemptFailedError:
    """Returns the failure of an answer that cannot be understood."""
    error = ProtocolError(
        f"{endpoint} {problem}; check that the address is that of a server with OpenAI's API.",
        status=status,
        request_id=request_id,
    )
    return AttemptFailedError(error, Judgement(retry))


def status_failed(endpoint: str, status: int, body: object, headers: Mapping[str, str]) -> AttemptFailedError:
    """Returns the failure that an error's status is.

    Args:
        endpoint: the server's address.
        status: of HTTP, or of the error object in an answer.
        body: of the answer: parsed JSON or text.
        headers: of the answer, lower-case names.
    """
    judgement = judge_status(status, headers, reason_of(body))
    return AttemptFailedError(status_error(status, body, headers, endpoint), judgement, retry_after_s(headers))


def raise_inner_error(endpoint: str, body: object, headers: Mapping[str, str]) -> None:
    """Raises for an error inside an answer with a good status.

    Raises:
        AttemptFailedError: there is one.
    """
    error = error_object(body)
    if error is not None:
        raise status_failed(endpoint, status_of(error), body, headers)


def _text_of(body: object) -> str:
    error = error_object(body)
    text = error.get("message") if error is not None else None
    if text is None and isinstance(body, Mapping):
        text = body.get("message") or body.get("detail")
    if text is None and isinstance(body, str) and "<html" not in body.lower():
        text = body
    words = " ".join(str(text or "").split()).rstrip(".")
    return words if len(words) <= MAX_TEXT_CHARS else words[: MAX_TEXT_CHARS - 1] + "…"


def _advice(status: int) -> str:
    if status in (401, 403):
        return "check the API key (VLLM_API_KEY)."
    if status == 404:
        return "check the model's name and the address."
    if status == 429:
        return "send less, or raise the server's limits."
    if status == 501:
        return "ask a server that has this."
    if status >= 500 or status in _TRANSIENT:
        return "try again later, and look at the server's log."
    return "correct the request."
