"""Settings for all tests: the marker that ties a test to a promise, whom they trust, and property tests that repeat."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same examples each time, and none that fails because this machine is slow or was halted; `make test
# ARGS="--hypothesis-profile=default --hypothesis-seed=7"` looks for others.
settings.register_profile(
    "steady", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


def pytest_configure(config: pytest.Config) -> None:
    # No test leaves this machine; to read all authorities of the world for each of a thousand clients takes long.
    os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("no_authority.pem"))
    config.addinivalue_line(
        "markers", "promise(*ids): promises of tests/requirements.py that the test holds the code to"
    )
