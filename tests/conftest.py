"""Settings for all tests: the marker that ties a test to a promise, whom they trust, and that no example has a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A machine that is busy with something else makes neither an example nor their choice a failure.
settings.register_profile("vllm_mxext", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vllm_mxext")


def pytest_configure(config: pytest.Config) -> None:
    # No test leaves this machine; to read all authorities of the world for each of a thousand clients takes long.
    os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("no_authority.pem"))
    config.addinivalue_line(
        "markers", "promise(*ids): promises of tests/requirements.py that the test holds the code to"
    )
