"""`Call`, `Attempt` and `Answer`: a request, its attempts and its outcome, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_mxext.client.numbers import check_numbers
from vllm_mxext.errors import ConfigError

HIGH, NORMAL, LOW = 0, 1, 2
"""Priorities: lower numbers go first."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Time limits of an attempt and of the whole call, in seconds; None = no limit.

    `httpx.Timeout` has no limit for a whole call; `namespaces.timeouts_of()` says how it is converted.

    Attributes:
        connect: until the connection is established.
        first_token: from then to the first token, or to the whole answer if it is not streamed.
        idle: between two parts of a stream.
        total: the whole call, waiting and retries included.

    Raises:
        ConfigError: one of them is not a number, or below 0.
    """

    connect: float | None = 5.0
    first_token: float | None = 120.0
    idle: float | None = 60.0
    total: float | None = 600.0

    def __post_init__(self) -> None:
        limits = {"connect": self.connect, "first_token": self.first_token, "idle": self.idle, "total": self.total}
        given: dict[str, Any] = {name: limit for name, limit in limits.items() if limit not in (None, math.inf)}
        check_numbers("Timeouts", **given)


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a server.

    Attributes:
        path: below the endpoint's URL, such as `/v1/chat/completions`.
        body: JSON; None for GET.
        method: HTTP method.
        is_stream: whether the answer is a stream of server-sent events.
        priority: 0 high, 1 normal, 2 low.
        model: for metrics and routing; empty if there is none.
        affinity: calls with equal values prefer the same endpoint: a session id, the beginning of a prompt.
        num_tokens: estimated prompt plus output tokens, for routing.
        is_idempotent: whether it may be sent again although the server may have received an earlier attempt; generating
            is idempotent, because it changes nothing on the server.
        headers: sent in addition to the client's.
        timeouts: None = the client's.
        endpoint_id: the only endpoint to ask; None = any.
        may_be_text: whether plain text is a valid answer, as from `/health`, `/metrics` and the adapters' routes.
        is_trial: whether a 500 only means that the server cannot do this; then it is neither retried nor held against
            the endpoint.

    Raises:
        ConfigError: there is no such priority.
    """

    path: str
    body: Mapping[str, Any] | None = field(default=None, repr=False)
    method: str = "POST"
    is_stream: bool = False
    priority: int = NORMAL
    model: str = ""
    affinity: str = ""
    num_tokens: int = 0
    is_idempotent: bool = True
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeouts: Timeouts | None = None
    endpoint_id: str | None = None
    may_be_text: bool = False
    is_trial: bool = False

    def __post_init__(self) -> None:
        if self.priority not in (HIGH, NORMAL, LOW):
            raise ConfigError(f"A priority is 0 (high), 1 (normal) or 2 (low), not {self.priority!r}.")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a call.

    Attributes:
        endpoint_id: the endpoint that was asked.
        duration_s: how long it took.
        status: HTTP status; None if there was no answer.
        problem: what went wrong, in words; empty if it succeeded.
        waited_s: backoff before it; 0 for the first attempt.
    """

    endpoint_id: str
    duration_s: float
    status: int | None = None
    problem: str = ""
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a call.

    Attributes:
        status: HTTP status.
        body: parsed JSON, or text if it is not JSON.
        headers: with lower-case names.
        request_id: the server's id of the request; empty if it gave none.
        endpoint_id: the endpoint that answered.
        attempts: all attempts, the successful one last.
        queue_s: seconds in the client's queue.
        duration_s: seconds that the whole call took.
    """

    status: int
    body: Any
    headers: Mapping[str, str]
    request_id: str
    endpoint_id: str
    attempts: tuple[Attempt, ...]
    queue_s: float
    duration_s: float
