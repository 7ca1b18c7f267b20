"""How prepared files are written, kept within limits, and left out; and what goes wrong with that."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.unit.native.models.prepared.starts import (
    CPU,
    LIMIT,
    SPEC,
    files,
    make_kernels,
    only_file,
    prepared_weights,
    save_checkpoint,
    start,
)
from vllm_mxext.config.engine import EngineConfig, ModelConfig, PreparedConfig
from vllm_mxext.native.kernels.library import best_library
from vllm_mxext.native.kernels.torch_kernels import TorchKernels
from vllm_mxext.native.models.prepared import identity, store, writing
from vllm_mxext.native.models.prepared.store import find_prepared_weights
from vllm_mxext.native.models.weights import load_weights

pytestmark = pytest.mark.skipif(best_library() is None, reason="there are no compiled kernels, so nothing is packed")


@pytest.mark.promise("LOAD-5")
def test_files_used_longest_ago_make_room(model: ModelConfig, cache: Path, tmp_path: Path) -> None:
    start(model, cache)
    size = only_file(cache).stat().st_size
    others = []
    for name in ("a", "b"):
        save_checkpoint(tmp_path / name)
        others.append(replace(model, path=tmp_path / name))
        start(others[-1], cache)
    for age_s, config in enumerate((others[0], model, others[1])):  # a was used last
        os.utime(prepared_weights(config, cache).path, (2e9 - age_s, 2e9 - age_s))
    save_checkpoint(tmp_path / "c")
    start(replace(model, path=tmp_path / "c"), cache, limit=2 * size)
    assert {file.name[0] for file in files(cache)} == {"a", "c"}


@pytest.mark.promise("LOAD-5")
def test_use_counts_and_not_age(model: ModelConfig, cache: Path) -> None:
    start(model, cache)
    os.utime(only_file(cache), (1, 1))
    start(model, cache)
    assert only_file(cache).stat().st_mtime > 1


@pytest.mark.promise("LOAD-5")
def test_a_model_beyond_the_limit_is_not_kept_and_evicts_nothing(
    model: ModelConfig, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(model, cache)
    kept = files(cache)
    save_checkpoint(tmp_path / "large")
    assert start(replace(model, path=tmp_path / "large"), cache, limit=1000)[0] is False
    assert files(cache) == kept
    assert "--prepared-weights-limit" in caplog.text


@pytest.mark.promise("LOAD-5")
def test_a_disk_that_is_nearly_full_is_left_alone(
    model: ModelConfig, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store, "_SPARED_DISK_BYTES", 2**60)
    start(model, cache)
    assert files(cache) == []
    assert "not written, because" in caplog.text


@pytest.mark.promise("LOAD-5")
def test_a_disk_that_fills_up_leaves_nothing_and_harms_nothing(
    model: ModelConfig, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def write(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", write)
        start(model, cache)
    assert files(cache) == []
    assert "No space left on device" in caplog.text


@pytest.mark.promise("LOAD-5")
def test_a_cache_folder_that_cannot_be_made_is_one_line_in_the_log(
    model: ModelConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert start(model, tmp_path / "file" / "prepared")[0] is False
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) <= 2


@pytest.mark.promise("LOAD-5")
def test_a_read_only_cache_is_used_but_not_written(
    model: ModelConfig, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start(model, cache)

    def refuse(*_arguments: object, **_names: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    assert start(model, cache)[0] is True
    monkeypatch.setattr(os, "open", refuse)
    assert start(replace(model, spec=replace(SPEC, rms_norm_eps=0.5)), cache)[0] is False
    assert "Read-only file system" in caplog.text


@pytest.mark.promise("LOAD-5")
@pytest.mark.parametrize(
    "change",
    [
        lambda config: replace(config, prepared=None),
        lambda config: replace(config, model=replace(config.model, load_format="dummy")),
    ],
    ids=["switched off", "dummy weights"],
)
def test_nothing_is_kept(model: ModelConfig, cache: Path, change: Callable[[EngineConfig], EngineConfig]) -> None:
    config = EngineConfig(model, prepared=PreparedConfig(cache, LIMIT))
    assert find_prepared_weights(config, make_kernels(model)) is not None
    assert find_prepared_weights(change(config), make_kernels(model)) is None
    assert find_prepared_weights(config, TorchKernels(CPU)) is None


def test_small_models_are_not_worth_a_file(model: ModelConfig, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig(model, prepared=PreparedConfig(cache, LIMIT))
    monkeypatch.setattr(store, "MIN_WEIGHTS_BYTES", 10**6)
    assert find_prepared_weights(config, make_kernels(model)) is None


def test_a_checkpoint_that_changes_while_it_is_loaded_is_not_kept(
    model: ModelConfig, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = prepared_weights(model, cache)
    load_weights(model, make_kernels(model), torch.float32, CPU, lambda _share: None, prepared.open())
    save_checkpoint(model.path, seed=1)
    writer = prepared.save()
    assert writer is not None
    writer.join()
    assert files(cache) == []
    assert "has changed since the start" in caplog.text


@pytest.mark.promise("LOAD-4")
def test_what_a_killed_writer_leaves_is_never_read_and_soon_replaced(
    model: ModelConfig, cache: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "replace", _killed)
        patched.setattr(Path, "unlink", _killed)
        start(model, cache)
        save_checkpoint(tmp_path / "other")
        start(replace(model, path=tmp_path / "other"), cache)
    assert len(files(cache)) == 2
    assert all(file.name.endswith(writing.TEMPORARY_SUFFIX) for file in files(cache))
    assert start(model, cache)[0] is False
    assert start(model, cache)[0] is True
    assert only_file(cache) == prepared_weights(model, cache).path


def _killed(_self: Path, *_arguments: object, **_names: object) -> None:
    raise OSError("killed")


def test_two_starts_at_once_do_not_harm_each_other(
    model: ModelConfig, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = threading.Event(), threading.Event()
    sync = os.fsync

    def wait(descriptor: int) -> None:
        entered.set()
        assert go_on.wait(30)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", wait)
    first, second = prepared_weights(model, cache), prepared_weights(model, cache)
    for each in (first, second):
        load_weights(model, make_kernels(model), torch.float32, CPU, lambda _share: None, each.open())
    writer = first.save()
    assert entered.wait(30)
    other = second.save()
    assert writer is not None
    assert other is not None
    other.join()
    go_on.set()
    writer.join()
    assert "another process is writing them" in caplog.text
    assert start(model, cache)[0]


def test_a_weight_file_that_cannot_be_read_is_left_to_the_loader(
    model: ModelConfig, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> identity.Identity:
        raise PermissionError("not yours")

    monkeypatch.setattr(store, "identify", refuse)
    config = EngineConfig(model, prepared=PreparedConfig(cache, LIMIT))
    assert find_prepared_weights(config, make_kernels(model)) is None
