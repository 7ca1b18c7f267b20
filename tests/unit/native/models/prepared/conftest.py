"""Fixtures for the tests of prepared files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.native.models.prepared.starts import SPEC, save_checkpoint
from vllm_mxext.config.engine import ModelConfig
from vllm_mxext.native.models.prepared import store


@pytest.fixture
def model(tmp_path: Path) -> ModelConfig:
    folder = tmp_path / "model"
    save_checkpoint(folder)
    return ModelConfig(folder, folder, SPEC, "float32", max_model_len=64)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "prepared"


@pytest.fixture(autouse=True)
def _prepare_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MIN_WEIGHTS_BYTES", 0)
    monkeypatch.setattr(store, "_WRITE_DELAY_S", 0.0)
