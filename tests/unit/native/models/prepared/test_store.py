"""When a prepared file is taken, and when it is dropped as stale or damaged."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.unit.native.models.prepared.starts import (
    CPU,
    SPEC,
    files,
    make_kernels,
    only_file,
    prepared_weights,
    save_checkpoint,
    start,
)
from vllm_mxext.config.engine import EngineConfig, ModelConfig, Quantization
from vllm_mxext.config.memory_plan import weights_bytes
from vllm_mxext.native.kernels.library import best_library
from vllm_mxext.native.models.prepared import identity
from vllm_mxext.native.models.weights import load_weights

pytestmark = pytest.mark.skipif(best_library() is None, reason="there are no compiled kernels, so nothing is packed")


@pytest.mark.promise("LOAD-3")
def test_the_second_start_uses_what_the_first_one_wrote(model: ModelConfig, cache: Path) -> None:
    assert start(model, cache)[0] is False
    written = only_file(cache).stat()
    assert start(model, cache)[0] is True
    assert only_file(cache).stat().st_ino == written.st_ino


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_the_memory_plan_holds_for_both_starts(model: ModelConfig, cache: Path, quantization: Quantization) -> None:
    model = replace(model, quantization=quantization)
    for _ in range(2):
        prepared = prepared_weights(model, cache)
        weights = load_weights(model, make_kernels(model), torch.float32, CPU, lambda _share: None, prepared.open())
        assert weights.num_bytes == weights_bytes(EngineConfig(model))
        writer = prepared.save()
        if writer is not None:
            writer.join()
    assert writer is None


def rewrite(file: Path) -> None:
    save_checkpoint(file.parent, seed=1)


def rewrite_and_keep_the_time(file: Path) -> None:
    before = file.stat()
    save_checkpoint(file.parent, seed=1)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def touch(file: Path) -> None:
    os.utime(file, ns=(0, 0))


@pytest.mark.promise("LOAD-4")
@pytest.mark.parametrize("change", [rewrite, rewrite_and_keep_the_time, touch])
def test_a_changed_checkpoint_makes_the_file_stale(
    model: ModelConfig, cache: Path, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    start(model, cache)
    change(model.path / "model.safetensors")
    is_used, out = start(model, cache)
    assert not is_used
    assert "because the checkpoint has changed" in caplog.text
    assert torch.equal(out, start(model, cache.with_name("other"))[1])
    assert start(model, cache)[0]  # replaced


@pytest.mark.promise("LOAD-4")
@pytest.mark.parametrize(("dtype", "quantization"), [("bfloat16", "none"), ("float32", "int8")])
def test_another_dtype_or_quantization_has_a_file_of_its_own(
    model: ModelConfig, cache: Path, dtype: str, quantization: Quantization
) -> None:
    start(model, cache)
    other = replace(model, dtype=dtype, quantization=quantization)
    assert start(other, cache)[0] is False
    assert start(other, cache)[0] is True
    assert start(model, cache)[0] is True
    assert len(files(cache)) == 2


@pytest.mark.promise("LOAD-4")
def test_another_configuration_of_the_model_makes_the_file_stale(
    model: ModelConfig, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(model, cache)
    assert start(replace(model, spec=replace(SPEC, rms_norm_eps=0.5)), cache)[0] is False
    assert "because the model's configuration has changed" in caplog.text


@pytest.mark.promise("LOAD-4")
def test_another_layout_of_the_kernels_is_never_taken(
    model: ModelConfig, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(model, cache)
    monkeypatch.setattr("vllm_mxext.native.kernels.compiled.ABI_VERSION", 1_000_000)
    assert start(model, cache)[0] is False


@pytest.mark.promise("LOAD-4")
def test_another_version_of_the_file_is_never_taken(
    model: ModelConfig, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start(model, cache)
    monkeypatch.setattr(identity, "PREPARED_VERSION", 1_000_000)
    assert start(model, cache)[0] is False
    assert "another version of this package" in caplog.text


def cut(content: bytes) -> bytes:
    return content[:-1]


def cut_in_the_header(content: bytes) -> bytes:
    return content[:20]


def empty(_content: bytes) -> bytes:
    return b""


def flip_in_the_header(content: bytes) -> bytes:
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


def flip_in_the_length(content: bytes) -> bytes:
    return content[:15] + b"\xff" + content[16:]


def zero_the_data(content: bytes) -> bytes:
    return content[: 2 * 2**20].ljust(len(content), b"\0")


def foreign(content: bytes) -> bytes:
    return b"#!/bin/sh\n" * 1000 + content


@pytest.mark.promise("LOAD-4")
@pytest.mark.parametrize(
    "damage",
    [cut, cut_in_the_header, empty, flip_in_the_header, flip_in_the_length, zero_the_data, foreign],
)
def test_a_damaged_file_is_dropped_and_written_again(
    model: ModelConfig, cache: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    expected = start(model, cache)[1]
    file = only_file(cache)
    file.write_bytes(damage(file.read_bytes()))
    is_used, out = start(model, cache)
    assert not is_used
    assert torch.equal(out, expected)
    assert "is not used, because" in caplog.text
    assert start(model, cache)[0]
