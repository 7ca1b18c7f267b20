"""`RequestRecord` and `RunResult`: everything a report needs to know about a run, as plain data that JSON can hold.

All times named `..._s` are monotonic seconds since the run began; `RunResult.started_at` says when that was.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vllm_mxext.errors import ConfigError

SCHEMA_VERSION = 1
"""Version of the JSON; raised when older readers would misread it."""

TokenSource = Literal["usage", "tokenizer", "server", "none"]
"""What counted the output tokens: the answer's usage, a tokenizer file, the server's /tokenize; none: nothing did."""

FAILURES = ("connect", "timeout", "disconnected", "http_status", "server_error", "protocol", "empty", "cancelled")
"""Kinds of failure.

connect: no connection; timeout: no complete answer in time; disconnected: the connection ended before the answer;
http_status: a status other than 200; server_error: an error inside an answer with status 200; protocol: an answer that
cannot be understood; empty: an answer without tokens; cancelled: the run was interrupted.
"""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request as the client saw it.

    Attributes:
        request_id: `req_0` and so on; unique in a run.
        stage: index into `RunResult.stages`.
        is_warmup: sent to reach the steady state; counts in no figure.
        scheduled_s: when it should have been sent; None where the load is a number of requests in flight.
        sent_s: when a connection was asked for.
        ended_s: when the answer was complete, or had failed.
        written_s: when it was written to its connection, after opening that if need be; None if it never was.
        chunk_times_s: arrival of every event that carried text; empty without streaming.
        empty_times_s: arrival of every other event with a choice, such as those with the role or the finish reason.
        chunk_tokens: tokens of each event with text; empty if the server does not say.
        prompt_tokens: as the server counts; None if unknown.
        cached_tokens: prompt tokens that the server had cached; None if it does not say.
        output_tokens: None if unknown.
        token_source: what counted the output tokens.
        finish_reason: empty if there was none.
        failure: one of `FAILURES`; empty if there was none.
        failure_detail: the same in words.
        status: HTTP status; None without an answer.
        conversation: number of the conversation; None for single prompts.
        turn: number within the conversation, from 0.
    """

    request_id: str
    stage: int
    is_warmup: bool
    scheduled_s: float | None
    sent_s: float
    ended_s: float
    written_s: float | None = None
    chunk_times_s: tuple[float, ...] = ()
    empty_times_s: tuple[float, ...] = ()
    chunk_tokens: tuple[int, ...] = ()
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    token_source: TokenSource = "none"
    finish_reason: str = ""
    failure: str = ""
    failure_detail: str = ""
    status: int | None = None
    conversation: int | None = None
    turn: int = 0

    @property
    def is_ok(self) -> bool:
        """Whether the answer was complete."""
        return not self.failure

    @property
    def send_lag_s(self) -> float | None:
        """How much later than scheduled it was sent; None without a schedule."""
        return None if self.scheduled_s is None else self.sent_s - self.scheduled_s


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the run with one server and one load: the whole run, a level of a sweep, or a turn of a comparison.

    Attributes:
        name: its name in reports, such as `8 at a time` or `4 requests/s`.
        server: label of the server.
        concurrency: requests in flight; None with a schedule.
        rate: requests per second asked for; None without a schedule.
        started_s: when its first request was due.
        measured_s: end of the warm-up: records sent from here on count.
        ended_s: when its last answer had come.
    """

    name: str
    server: str
    concurrency: int | None
    rate: float | None
    started_s: float
    measured_s: float
    ended_s: float

    @property
    def level(self) -> float:
        """Its load as a number for charts: requests in flight, or requests per second."""
        return float(self.concurrency if self.concurrency is not None else self.rate or 0.0)


@dataclass(frozen=True, slots=True)
class ClientLag:
    """Whether the client kept up during one stage.

    Attributes:
        loop_delay_p50_s: how late the event loop woke up, median.
        loop_delay_p99_s: the same, 99th percentile.
        loop_delay_max_s: the same, maximum.
        send_lag_p99_s: how much later than scheduled requests were sent, 99th percentile; None without a schedule.
        send_lag_max_s: the same, maximum.
        cpu_share: share of one core that this process used.
        chunks_per_s: events read per second.
    """

    loop_delay_p50_s: float
    loop_delay_p99_s: float
    loop_delay_max_s: float
    send_lag_p99_s: float | None
    send_lag_max_s: float | None
    cpu_share: float
    chunks_per_s: float


@dataclass(frozen=True, slots=True)
class MetricsSample:
    """The server's `/metrics` at one time.

    Attributes:
        at_s: when the answer came.
        server: label of the server.
        values: name of the series, labels included -> value.
    """

    at_s: float
    server: str
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RunResult:
    """Everything that was measured in one run.

    Attributes:
        started_at: when it began: ISO 8601 with the offset from UTC.
        plan: the plan as a mapping of sections, as in a YAML file; without secrets.
        environment: facts about the client's machine.
        stages: in order.
        records: all requests, warm-up included, in the order they were sent.
        lag: one per stage.
        invalid_reasons: why the figures must not be used; empty if they may.
        notes: what a reader should know, in sentences.
        metrics: samples of the servers' metrics, in order of time.
        is_interrupted: whether the user ended it early.
        duration_s: length of the whole run, warm-up included.
        schema_version: version of this data.
    """

    started_at: str
    plan: Mapping[str, Any]
    environment: Mapping[str, Any]
    stages: tuple[Stage, ...]
    records: tuple[RequestRecord, ...]
    lag: tuple[ClientLag, ...] = ()
    invalid_reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    metrics: tuple[MetricsSample, ...] = ()
    is_interrupted: bool = False
    duration_s: float = 0.0
    schema_version: int = SCHEMA_VERSION

    @property
    def is_valid(self) -> bool:
        """Whether the figures may be used."""
        return not self.invalid_reasons

    @property
    def settings(self) -> dict[str, Any]:
        """The sections of the plan, without the prompts that its file lists."""
        return {name: part for name, part in self.plan.items() if name != "prompts"}

    @property
    def model(self) -> str:
        """Name of the model that was measured; empty if the plan does not say."""
        return str(self.plan.get("server", {}).get("model", ""))

    def of_stage(self, stage: int) -> tuple[RequestRecord, ...]:
        """Returns the measured records of one stage, without warm-up."""
        return tuple(record for record in self.records if record.stage == stage and not record.is_warmup)

    def as_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Returns JSON on one line."""
        return json.dumps(self.as_dict(), ensure_ascii=False)

    @classmethod
    def from_dict(cls, data: Any, origin: str = "The result") -> RunResult:
        """Reads what `as_dict` returned; unknown fields, which a later version may add, are ignored.

        Args:
            data: parsed JSON.
            origin: where it comes from, such as a file's name; begins error messages.

        Raises:
            ConfigError: it is not a result, or one of a later schema.
        """
        if not isinstance(data, dict) or not isinstance(data.get("schema_version"), int):
            raise ConfigError(f"{origin} is not the result of a performance test; give a file written with --json.")
        if data["schema_version"] > SCHEMA_VERSION:
            raise ConfigError(
                f"{origin} was written by a later version (schema {data['schema_version']}, this one reads up to "
                f"{SCHEMA_VERSION}); update this package."
            )
        try:
            return cls(
                **_known(
                    cls,
                    data,
                    stages=tuple(Stage(**_known(Stage, item)) for item in data["stages"]),
                    records=tuple(_record(item) for item in data["records"]),
                    lag=tuple(ClientLag(**_known(ClientLag, item)) for item in data.get("lag", ())),
                    metrics=tuple(MetricsSample(**_known(MetricsSample, item)) for item in data.get("metrics", ())),
                    invalid_reasons=tuple(data.get("invalid_reasons", ())),
                    notes=tuple(data.get("notes", ())),
                )
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{origin} is not complete ({error}); write it again with --json.") from None

    @classmethod
    def read(cls, path: Path) -> RunResult:
        """Reads a JSON file.

        Raises:
            ConfigError: it cannot be read or holds something else.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"'{path}' cannot be read: {error.strerror}.") from None
        except ValueError:
            raise ConfigError(f"'{path}' is not JSON; give a file written with --json.") from None
        return cls.from_dict(data, f"'{path}'")


def _record(data: dict[str, Any]) -> RequestRecord:
    lists = {name: tuple(data.get(name, ())) for name in ("chunk_times_s", "empty_times_s", "chunk_tokens")}
    return RequestRecord(**_known(RequestRecord, data, **lists))


def _known(kind: type[Any], data: dict[str, Any], **replaced: Any) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    return {**{name: value for name, value in data.items() if name in names}, **replaced}
