"""Settings for all tests: the marker that ties a test to a promise."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "promise(*ids): promises of tests/requirements.py that the test holds the code to"
    )
