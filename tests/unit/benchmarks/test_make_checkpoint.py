"""Random checkpoints: their shapes, and that they are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import make_checkpoint
import pytest
from make_checkpoint import SHAPES, ModelShape
from safetensors.torch import load_file

TINY = ModelShape(hidden=32, inner=64, layers=2, heads=2, kv_heads=1)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_checkpoint, "VOCAB_SIZE", 300)
    monkeypatch.setitem(SHAPES, "tiny", TINY)


@pytest.mark.parametrize(("shape", "billions"), [("qwen3-0.6b", 0.596), ("qwen3-4b", 4.02)])
def test_shapes_have_the_size_in_their_name(shape: str, billions: float) -> None:
    sizes = SHAPES[shape].parameter_shapes().values()
    assert sum(size[0] * (size[1] if len(size) == 2 else 1) for size in sizes) / 1e9 == pytest.approx(billions, 0.01)


@pytest.mark.parametrize("shard_bytes", [10_000, 2**30])
def test_a_checkpoint_has_every_tensor_once(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_bytes: int
) -> None:
    monkeypatch.setattr(make_checkpoint, "_SHARD_BYTES", shard_bytes)
    make_checkpoint.make_checkpoint(tmp_path, shape="tiny")
    files = sorted(tmp_path.glob("*.safetensors"))
    stored = {name: tuple(tensor.shape) for path in files for name, tensor in load_file(path).items()}
    assert stored == TINY.parameter_shapes()
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists() == (len(files) > 1)
    if index.exists():
        assert set(json.loads(index.read_text(encoding="utf-8"))["weight_map"]) == set(stored)


def test_a_complete_checkpoint_is_left_as_it_is(tiny: None, tmp_path: Path) -> None:
    make_checkpoint.make_checkpoint(tmp_path, shape="tiny")
    before = (tmp_path / "model.safetensors").stat().st_mtime_ns
    make_checkpoint.make_checkpoint(tmp_path, seed=1, shape="tiny")
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == before


def test_an_interrupted_checkpoint_is_written_again(tiny: None, tmp_path: Path) -> None:
    make_checkpoint.make_checkpoint(tmp_path, shape="tiny")
    (tmp_path / "config.json").unlink()
    (tmp_path / "model.safetensors").write_bytes(b"")
    make_checkpoint.make_checkpoint(tmp_path, shape="tiny")
    assert set(load_file(tmp_path / "model.safetensors")) == set(TINY.parameter_shapes())
