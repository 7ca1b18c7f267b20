"""A model's files, hubs that serve them, and retries without waiting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_servers.model_files import write_model
from tests.hub_servers.model_hub import ModelHub


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def hub(model: Path) -> Iterator[ModelHub]:
    with ModelHub() as running:
        running.add("acme/tiny", model)
        yield running


@pytest.fixture
def impatient() -> Iterator[None]:
    """Retries come at once."""
    import stamina

    with stamina.set_testing(True, attempts=3, cap=True):
        yield
