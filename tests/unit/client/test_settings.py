"""Settings of `VllmClient`: arguments beat the environment, which beats defaults."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vllm_mxext.client.hedging import HedgePolicy
from vllm_mxext.client.settings import ClientSettings
from vllm_mxext.errors import ConfigError

pytestmark = pytest.mark.promise("CLIENT-10")

VARIABLES = {
    "VLLM_API_URL": ("base_url", "http://server:1", "http://server:1"),
    "VLLM_API_KEY": ("api_key", "secret", "secret"),
    "VLLM_MODEL": ("model", "m", "m"),
    "VLLM_TIMEOUT": ("timeout", "60", 60.0),
    "VLLM_MAX_RETRIES": ("max_retries", "7", 7),
    "VLLM_RETRY_DELAY": ("retry_delay", "0.25", 0.25),
    "VLLM_BACKOFF_FACTOR": ("backoff_factor", "3", 3.0),
    "VLLM_MAX_CONCURRENT": ("max_concurrent_requests", "4", 4),
    "VLLM_FAILURE_THRESHOLD": ("failure_threshold", "9", 9),
    "VLLM_RESET_TIMEOUT": ("reset_timeout", "12.5", 12.5),
    "VLLM_BATCH_SIZE": ("max_batch_size", "16", 16),
    "VLLM_BATCH_TIMEOUT": ("batch_timeout", "0.5", 0.5),
}


@pytest.mark.parametrize(("variable", "name", "text", "value"), [(key, *rest) for key, rest in VARIABLES.items()])
def test_every_documented_variable_is_read_unless_an_argument_is_given(variable, name, text, value) -> None:
    usual = getattr(ClientSettings.read({}, {}), name)
    assert getattr(ClientSettings.read({}, {variable: text}), name) == value != usual
    assert getattr(ClientSettings.read({name: None}, {variable: text}), name) == value
    assert getattr(ClientSettings.read({name: usual}, {variable: text}), name) == usual


def test_they_reach_the_policies() -> None:
    read = ClientSettings.read(
        {"timeout": 60, "max_retries": 7, "retry_delay": 0.25, "backoff_factor": 3, "queue_size": 5}, {}
    )
    config = read.pipeline()
    assert (config.timeouts.total, config.max_queue) == (60, 5)
    assert (config.retry.max_retries, config.retry.first_delay_s, config.retry.factor) == (7, 0.25, 3)
    assert ClientSettings.read({"queue_enabled": False}, {}).pipeline().max_queue == 0
    assert ClientSettings.read({"max_concurrent_requests": 4}, {}).endpoint("e").limiter.limit == 4
    assert (config.hedge, config.budget.share) == (None, 0.2)
    config = ClientSettings.read({"hedge_after": 1.5, "retry_budget": 0.1, "failure_threshold": 9}, {}).pipeline()
    assert (config.hedge, config.budget.share) == (HedgePolicy(1.5), 0.1)
    assert config.breaker.failure_threshold == 9


def test_fallbacks_are_endpoints_for_when_the_first_cannot_be_asked() -> None:
    read = ClientSettings.read({"base_url": "http://a", "fallbacks": ["http://b", "http://c"], "api_key": "k"}, {})
    found = [(one.id, one.url, one.api_key, one.is_fallback) for one in read.endpoints("main")]
    assert found == [
        ("main", "http://a", "k", False),
        ("fallback-1", "http://b", "k", True),
        ("fallback-2", "http://c", "k", True),
    ]


@pytest.mark.parametrize(
    ("given", "environ", "words"),
    [
        ({"max_retrys": 1}, {}, "did you mean max_retries"),
        ({"colour": 1}, {}, "those known are"),
        ({"max_retries": -1}, {}, "max_retries must be finite and at least 0"),
        ({"timeout": float("nan")}, {}, "timeout must be finite"),
        ({"fallbacks": "http://b"}, {}, "fallbacks must be a list of texts"),
        ({"batch_enabled": "no"}, {}, "True or False"),
        ({}, {"VLLM_TIMEOUT": "soon"}, "VLLM_TIMEOUT must be a number"),
        ({}, {"VLLM_BATCH_SIZE": "0"}, "VLLM_BATCH_SIZE must be finite and at least 1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(given, environ, words) -> None:
    with pytest.raises(ConfigError, match=words):
        ClientSettings.read(given, environ)


def test_key_and_password_are_not_shown() -> None:
    read = ClientSettings.read(
        {"api_key": "secret", "base_url": "http://user:secret@a", "fallbacks": ["http://u:secret@b"]}, {}
    )
    assert "secret" not in repr(read)
    assert "secret" not in repr(read.endpoints("main"))
    assert "secret" not in repr(replace(read.pipeline(), headers={"Authorization": "secret"}))
