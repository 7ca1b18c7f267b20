"""Settings for all tests: markers, whom they trust, how examples are chosen, and what does not depend on the caller."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings


def pytest_configure(config: pytest.Config) -> None:
    # What a script starts in the background ignores Ctrl-C, and so would all processes that tests interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # No test leaves this machine; to read all authorities of the world for each of a thousand clients takes long.
    os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("no_authority.pem"))
    # To be slow is no mistake on a busy machine; new examples are looked for by long runs, and nobody else meets them.
    settings.register_profile(
        "steady",
        deadline=None,
        derandomize=os.environ.get("VLLM_MXEXT_TEST_LONG") != "1",
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("steady")
    config.addinivalue_line(
        "markers", "promise(*ids): promises of tests/requirements.py that the test holds the code to"
    )


def pytest_collection_finish() -> None:
    # What ten thousand tests and their libraries are made of stays; to look through it takes more than half a second.
    gc.collect()
    gc.freeze()
