"""Numbers that mean nothing: settings and fields of requests are refused, in one sentence, before anything is sent."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from tests.client.endpoints import closed_port
from vllm_mxext.client import AsyncVllmClient, VllmClient
from vllm_mxext.client.breaker import BreakerConfig
from vllm_mxext.client.call import Timeouts
from vllm_mxext.client.errors import BadRequestError
from vllm_mxext.client.exchange import encoded
from vllm_mxext.client.hedging import HedgePolicy
from vllm_mxext.client.limiter import LimiterConfig
from vllm_mxext.client.namespaces import timeouts_of
from vllm_mxext.client.retry import BudgetConfig, RetryPolicy
from vllm_mxext.client.settings import ClientSettings
from vllm_mxext.client.sharing import BatchSettings
from vllm_mxext.errors import ConfigError

BAD = [math.nan, True, "3", -1.5]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(
    "make",
    [
        lambda value: Timeouts(idle=value),
        lambda value: RetryPolicy(max_retries=value),
        lambda value: RetryPolicy(first_delay_s=value),
        lambda value: BudgetConfig(share=value),
        HedgePolicy,
        lambda value: BreakerConfig(reset_timeout_s=value),
        lambda value: BreakerConfig(num_probes=value),
        lambda value: LimiterConfig(max_limit=value),
        lambda value: BatchSettings(max_size=value),
        lambda value: BatchSettings(timeout_s=value),
    ],
)
def test_a_policy_refuses_what_is_no_number_of_its_kind(make: Callable[[Any], object], value: object) -> None:
    with pytest.raises(ConfigError, match="must be"):
        make(value)


@pytest.mark.parametrize("name", ["max_batch_size", "max_retries", "max_concurrent_requests", "queue_size"])
@pytest.mark.parametrize("value", [2.7, True, math.nan, math.inf, "2.7"])
def test_a_setting_that_counts_takes_whole_numbers_only(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be a whole number"):
        ClientSettings.read({name: value}, {})


@pytest.mark.parametrize("value", [True, math.nan, math.inf, -1, "soon"])
def test_seconds_are_finite_numbers(value: object) -> None:
    for name in ("batch_timeout", "reset_timeout", "hedge_after", "timeout"):
        with pytest.raises(ConfigError, match=f"{name} must be"):
            ClientSettings.read({name: value}, {})


def test_the_limits_of_httpx_are_ours_but_for_that_of_the_whole_call() -> None:
    assert timeouts_of(httpx.Timeout(7.0, connect=2.0)) == Timeouts(2.0, 7.0, 7.0, None)
    assert timeouts_of(httpx.Timeout(None)) == Timeouts(None, None, None, None)
    settings = ClientSettings.read({"timeout": httpx.Timeout(7.0)}, {})
    assert settings.pipeline().timeouts == Timeouts(7.0, 7.0, 7.0, None)
    assert ClientSettings.read({"timeout": Timeouts(idle=1.0)}, {}).pipeline().timeouts == Timeouts(idle=1.0)
    client = AsyncVllmClient(closed_port(), timeout=httpx.Timeout(7.0))
    assert client.pipeline.config.timeouts.first_token == 7.0
    client.with_options(timeout=httpx.Timeout(3.0))


@pytest.mark.parametrize(
    "value", [math.nan, -math.inf, [1, {"a": math.inf}], np.float32("nan"), np.array([0.5, np.inf]), (math.nan,)]
)
def test_json_without_such_numbers_is_not_given_any(value: object) -> None:
    with pytest.raises(BadRequestError, match="field 'top_p' has NaN or an infinite number"):
        encoded({"model": None, "top_p": value})
    assert encoded({"a": None, "b": "null", "c": [None, 0.5]}) == b'{"a":null,"b":"null","c":[null,0.5]}'


def test_every_face_refuses_such_numbers_before_it_sends() -> None:
    with VllmClient(base_url=closed_port()) as client:
        name = client.create_endpoint()
        bad = {"temperature": math.nan}
        for ask in (
            lambda: client.chat.completions.create(model="m", messages=[], **bad),
            lambda: client.run_inference("m", "hi", bad),
            lambda: list(client.stream_generation("m", "hi", bad)),
            lambda: client.make_request_with_endpoint(name, {"prompt": "hi", **bad}),
            lambda: client.embeddings.create(model="m", input=[math.inf]),
        ):
            with pytest.raises(BadRequestError):
                ask()
        assert client.failure_count == 0
