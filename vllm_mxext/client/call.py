"""`Call`, `Attempt` and `Answer`: what is asked, how often it was tried, and what came, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_mxext.client.numbers import check_numbers
from vllm_mxext.errors import ConfigError

HIGH, NORMAL, LOW = 0, 1, 2
"""Priorities: smaller goes first."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits of one attempt and of a whole call, in seconds; None = no limit.

    `httpx.Timeout` has no limit of a whole call: `namespaces.timeouts_of()` says what becomes of one.

    Attributes:
        connect: until the connection stands.
        first_token: from then to the first token, or to a whole answer that is not streamed.
        idle: between two parts of a stream.
        total: of the call, queue and retries included.

    Raises:
        ConfigError: one of them is no number, or below 0.
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
    """One thing that is asked of a server.

    Attributes:
        path: below the endpoint's URL, such as `/v1/chat/completions`.
        body: JSON; None for GET.
        method: of HTTP.
        is_stream: the answer is read as server-sent events.
        priority: 0 high, 1 normal, 2 low.
        model: for metrics and routing; empty if the call concerns none.
        affinity: calls with equal values prefer one endpoint: a session, a prompt's beginning.
        num_tokens: prompt plus output tokens that it will take, estimated, for routing.
        is_idempotent: may be sent again although an earlier attempt may have had an effect; generating is, as it leaves
            nothing behind.
        headers: in addition to the client's.
        timeouts: None = the client's.
        endpoint_id: the only endpoint to ask; None = any.
        may_be_text: plain text is a good answer too, as of `/health`, `/metrics` and the adapters' routes.
        is_trial: a 500 only means that the server cannot do this: it is neither tried again nor held against it.

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
    """One try.

    Attributes:
        endpoint_id: who was asked.
        duration_s: how long it took.
        status: of HTTP; None if there was no answer.
        problem: what went wrong, in words; empty if nothing did.
        waited_s: before it, because of a retry.
    """

    endpoint_id: str
    duration_s: float
    status: int | None = None
    problem: str = ""
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came in the end.

    Attributes:
        status: of HTTP.
        body: parsed JSON, or text if it is none.
        headers: lower-case names.
        request_id: of the server; empty if it gives none.
        endpoint_id: who answered.
        attempts: all of them, the successful one last.
        queue_s: seconds in the queue.
        duration_s: seconds of the call in all.
    """

    status: int
    body: Any
    headers: Mapping[str, str]
    request_id: str
    endpoint_id: str
    attempts: tuple[Attempt, ...]
    queue_s: float
    duration_s: float
