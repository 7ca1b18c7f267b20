"""`ClientSettings`: the settings of `VllmClient`, from arguments or environment variables."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any

from vllm_mxext.client.async_client import new_endpoint
from vllm_mxext.client.breaker import BreakerConfig
from vllm_mxext.client.call import Timeouts
from vllm_mxext.client.hedging import HedgePolicy
from vllm_mxext.client.limiter import LimiterConfig
from vllm_mxext.client.namespaces import timeouts_of
from vllm_mxext.client.pipeline import PipelineConfig
from vllm_mxext.client.retry import BudgetConfig, RetryPolicy
from vllm_mxext.client.router import Endpoint
from vllm_mxext.errors import ConfigError


def _setting(default: Any, variable: str = "", at_least: float = -math.inf) -> Any:
    return field(default=default, metadata={"variable": variable, "at_least": at_least})


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Settings of a client.

    Attributes:
        api_key: presented to the server; empty = none.
        base_url: the server's URL, with or without `/v1`.
        fallbacks: URLs of servers that are asked only while that one is unavailable.
        model: used for calls that name none; `default` = whichever the server serves.
        timeout: time limit of a whole call in seconds, retries included; or `Timeouts`, or an `httpx.Timeout`; 0 = 10
            minutes, with the default limits for its parts.
        max_retries: attempts after the first, for transient failures.
        retry_delay: upper bound of the first random wait before a retry, in seconds.
        backoff_factor: growth of that bound from one retry to the next.
        retry_budget: fraction of a retry that every call earns; retries in all stay within what has been earned.
        hedge_after: seconds without a first token after which a call is sent a second time; 0 = never.
        max_concurrent_requests: most requests at the server at once.
        failure_threshold: consecutive failures that open the circuit.
        reset_timeout: seconds that the circuit stays open.
        queue_enabled: whether calls wait while `max_concurrent_requests` are under way; if not, they are refused.
        queue_size: most calls that may wait.
        batch_enabled: whether prompts, and texts to embed, of concurrent calls with equal parameters are sent as one
            request.
        max_batch_size: most of them in one such request.
        batch_timeout: seconds that the first of them waits for others.
    """

    api_key: str = field(default="", repr=False, metadata={"variable": "VLLM_API_KEY"})
    base_url: str = field(default="http://localhost:8000", repr=False, metadata={"variable": "VLLM_API_URL"})
    fallbacks: tuple[str, ...] = field(default=(), repr=False, metadata={"variable": ""})
    model: str = _setting("default", "VLLM_MODEL")
    timeout: float | Timeouts = _setting(0.0, "VLLM_TIMEOUT", 0)  # noqa: RUF009 - a field
    max_retries: int = _setting(3, "VLLM_MAX_RETRIES", 0)
    retry_delay: float = _setting(0.5, "VLLM_RETRY_DELAY", 0)
    backoff_factor: float = _setting(2.0, "VLLM_BACKOFF_FACTOR", 1)
    retry_budget: float = _setting(0.2, at_least=0)
    hedge_after: float = _setting(0.0, at_least=0)
    max_concurrent_requests: int = _setting(10, "VLLM_MAX_CONCURRENT", 1)
    failure_threshold: int = _setting(5, "VLLM_FAILURE_THRESHOLD", 1)
    reset_timeout: float = _setting(30.0, "VLLM_RESET_TIMEOUT", 0)
    queue_enabled: bool = _setting(True)
    queue_size: int = _setting(1000, at_least=0)
    batch_enabled: bool = _setting(True)
    max_batch_size: int = _setting(8, "VLLM_BATCH_SIZE", 1)
    batch_timeout: float = _setting(0.1, "VLLM_BATCH_TIMEOUT", 0)

    @classmethod
    def read(cls, given: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> ClientSettings:
        """Returns the given settings, completed from the environment and by defaults; None counts as not given.

        Args:
            given: settings by name.
            environ: environment variables; this process's by default.

        Raises:
            ConfigError: a name is unknown, or a value is invalid.
        """
        environ = os.environ if environ is None else environ
        known = {one.name: one for one in fields(cls)}
        unknown = next((name for name in given if name not in known), None)
        if unknown is not None:
            similar = get_close_matches(unknown, known, n=1)
            advice = f"did you mean {similar[0]}?" if similar else f"those known are {', '.join(known)}."
            raise ConfigError(f"The client has no setting '{unknown}': {advice}")
        values = {}
        for name, one in known.items():
            variable = one.metadata["variable"]
            if given.get(name) is not None:
                values[name] = _checked(name, given[name], str(one.type), one.metadata.get("at_least", -math.inf))
            elif environ.get(variable):
                values[name] = _checked(
                    variable, environ[variable], str(one.type), one.metadata.get("at_least", -math.inf)
                )
        return cls(**values)

    def pipeline(self) -> PipelineConfig:
        """Returns them as those of a pipeline."""
        usual = PipelineConfig()
        return PipelineConfig(
            timeouts=timeouts_of(self.timeout or None) or usual.timeouts,
            retry=RetryPolicy(self.max_retries, self.retry_delay, self.backoff_factor),
            budget=BudgetConfig(share=self.retry_budget),
            hedge=HedgePolicy(self.hedge_after) if self.hedge_after else None,
            breaker=BreakerConfig(failure_threshold=self.failure_threshold, reset_timeout_s=self.reset_timeout),
            limiter=LimiterConfig(max_limit=self.max_concurrent_requests),
            max_queue=self.queue_size if self.queue_enabled else 0,
        )

    def endpoint(self, endpoint_id: str) -> Endpoint:
        """Returns the endpoint that they describe."""
        config = self.pipeline()
        return new_endpoint(
            self.base_url, endpoint_id, api_key=self.api_key, breaker=config.breaker, limiter=config.limiter
        )

    def endpoints(self, endpoint_id: str) -> list[Endpoint]:
        """Returns it and its fallbacks, which are named by number: `fallback-1` and so on."""
        fallbacks = [
            replace(self, base_url=url).endpoint(f"fallback-{number}") for number, url in enumerate(self.fallbacks, 1)
        ]
        for endpoint in fallbacks:
            endpoint.is_fallback = True
        return [self.endpoint(endpoint_id), *fallbacks]


_READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "str": (str, "a text"),
    "int": (int, "a whole number"),
    "float": (float, "a number"),
}


def _checked(name: str, value: Any, kind: str, at_least: float) -> Any:
    if kind == "bool":
        if not isinstance(value, bool):
            raise ConfigError(f"{name} must be True or False, not {value!r}.")
        return value
    if kind == "tuple[str, ...]":
        if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(one, str) for one in value):
            raise ConfigError(f"{name} must be a list of texts, not {value!r}.")
        return tuple(value)
    if kind == "float | Timeouts":
        if not isinstance(value, (str, int, float)):
            return timeouts_of(value)
        kind = "float"
    read, words = _READERS[kind]
    try:
        number = read(value)
        is_other = isinstance(value, bool) or (kind == "int" and not isinstance(value, str) and number != value)
    except (OverflowError, TypeError, ValueError):
        is_other = True
    if is_other:
        raise ConfigError(f"{name} must be {words}, not {value!r}.")
    if kind != "str" and not at_least <= number < math.inf:
        raise ConfigError(f"{name} must be finite and at least {at_least:g}, not {value!r}.")
    return number
