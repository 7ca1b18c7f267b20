"""A watched folder: what comes, changes, breaks and goes, look by look."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from vllm_mxext.config.server import LoRAModule, LoRAServingConfig
from vllm_mxext.engine.backends.fake import FakeEngineClient
from vllm_mxext.engine.client import AdapterInfo, AdapterSource, EnginePhase
from vllm_mxext.errors import ConfigError, EngineDeadError, ModelNotFoundError
from vllm_mxext.server.adapters import ServedAdapters
from vllm_mxext.server.clock import SystemClock
from vllm_mxext.server.lora_watcher import FolderWatcher

pytestmark = pytest.mark.promise("LORA-API-3")


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngineClient]:
    engine = FakeEngineClient(max_loras=2)
    await engine.start()
    yield engine
    await engine.shutdown()


@pytest.fixture
def watcher(engine: FakeEngineClient, tmp_path: Path) -> FolderWatcher:
    clock = SystemClock()
    return FolderWatcher(ServedAdapters(engine, LoRAServingConfig(), clock), tmp_path, 1.0, clock)


def write(folder: Path, name: str, rank: int | str = 8) -> None:
    (folder / name).mkdir(exist_ok=True)
    config = folder / name / "adapter_config.json"
    number = config.stat().st_mtime_ns + 1_000_000 if config.exists() else 0
    config.write_text(json.dumps({"r": rank}) if isinstance(rank, int) else rank)
    if number:
        os.utime(config, ns=(number, number))


def served(engine: FakeEngineClient) -> list[tuple[str, int]]:
    return [(info.name, info.generation) for info in engine.adapters]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


async def test_what_is_there_at_the_start_is_served_at_once(engine, watcher, tmp_path: Path) -> None:
    write(tmp_path, "a")
    (tmp_path / "empty").mkdir()
    write(tmp_path, ".hidden")
    (tmp_path / "notes.txt").write_text("no adapter")
    await watcher.look(is_first=True)
    assert served(engine) == [("a", 1)]


async def test_a_folder_is_read_when_it_has_stayed_as_it_is_between_two_looks(engine, watcher, tmp_path: Path) -> None:
    write(tmp_path, "a")
    await watcher.look()
    assert served(engine) == []
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"half")
    await watcher.look()
    assert served(engine) == []
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"half and half")
    await watcher.look()
    assert served(engine) == []
    await watcher.look()
    assert served(engine) == [("a", 1)]


async def test_a_changed_folder_is_loaded_again_in_place_and_only_once(engine, watcher, tmp_path: Path) -> None:
    write(tmp_path, "a")
    await watcher.look(is_first=True)
    for _ in range(3):
        await watcher.look()
    assert served(engine) == [("a", 1)]
    write(tmp_path, "a", 4)
    for _ in range(3):
        await watcher.look()
    assert served(engine) == [("a", 2)]


async def test_a_folder_that_goes_takes_its_adapter_with_it(engine, watcher, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path, name)
    await watcher.look(is_first=True)
    await engine.unload_adapter("b")
    for name in ("a", "b"):
        shutil.rmtree(tmp_path / name)
    await watcher.look()
    assert served(engine) == [("c", 1)]


async def test_an_adapter_that_was_unloaded_by_hand_stays_away_until_it_changes(
    engine, watcher, tmp_path: Path
) -> None:
    write(tmp_path, "a")
    await watcher.look(is_first=True)
    await engine.unload_adapter("a")
    await watcher.look()
    assert served(engine) == []
    write(tmp_path, "a", 4)
    for _ in range(2):
        await watcher.look()
    assert served(engine) == [("a", 1)]


async def test_a_broken_folder_is_reported_once_per_change_and_harms_no_other(
    engine, watcher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "bad", "{")
    write(tmp_path, "good")
    await watcher.look(is_first=True)
    for _ in range(3):
        await watcher.look()
    assert served(engine) == [("good", 1)]
    assert len(warnings(caplog)) == 1
    write(tmp_path, "bad", "{]")
    for _ in range(3):
        await watcher.look()
    assert len(warnings(caplog)) == 2
    write(tmp_path, "bad", 8)
    for _ in range(2):
        await watcher.look()
    assert served(engine) == [("good", 1), ("bad", 1)]


async def test_a_change_for_the_worse_leaves_the_old_weights_in_service(
    engine, watcher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "a")
    await watcher.look(is_first=True)
    write(tmp_path, "a", "{")
    for _ in range(3):
        await watcher.look()
    assert served(engine) == [("a", 1)]
    assert [("old weights" in text) for text in warnings(caplog)] == [True]


async def test_a_folder_that_cannot_be_read_is_reported_once_and_unloads_nothing(
    engine, watcher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "a")
    await watcher.look(is_first=True)
    os.rename(tmp_path, tmp_path.with_name("elsewhere"))
    for _ in range(2):
        await watcher.look()
    assert served(engine) == [("a", 1)]
    assert len(warnings(caplog)) == 1


async def test_what_the_engine_could_not_load_is_tried_again(engine, watcher, tmp_path: Path, monkeypatch) -> None:
    write(tmp_path, "a")
    load = engine.load_adapter

    async def fail(*args: object, **options: object) -> AdapterInfo:
        raise EngineDeadError("not now")

    monkeypatch.setattr(engine, "load_adapter", fail)
    await watcher.look(is_first=True)
    monkeypatch.setattr(engine, "load_adapter", load)
    await watcher.look()
    assert served(engine) == [("a", 1)]


@pytest.mark.promise("LORA-API-1")
async def test_the_server_is_loading_until_its_listed_adapters_are_there(engine, tmp_path: Path) -> None:
    write(tmp_path, "a")
    (tmp_path / "none").mkdir()
    modules = (LoRAModule("a", str(tmp_path / "a")), LoRAModule("b", str(tmp_path / "none")))
    adapters = ServedAdapters(engine, LoRAServingConfig(modules), SystemClock())
    assert adapters.status.phase is EnginePhase.LOADING
    with pytest.raises(ConfigError, match="'b' cannot be loaded"):
        await adapters.load_at_start()
    assert served(engine) == [("a", 1)]
    assert (adapters.status.phase, adapters.status.progress) == (EnginePhase.LOADING, 0.5)
    write(tmp_path, "none")
    await adapters.load_at_start()
    assert adapters.status.phase is EnginePhase.READY


@pytest.mark.promise("LORA-API-1")
async def test_a_listed_adapter_that_is_not_there_is_named_before_anything_is_loaded(engine, tmp_path: Path) -> None:
    write(tmp_path, "a")
    modules = (LoRAModule("a", str(tmp_path / "a")), LoRAModule("b", str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="'b' cannot be loaded"):
        await ServedAdapters(engine, LoRAServingConfig(modules), SystemClock()).load_at_start()
    assert served(engine) == []


@pytest.mark.promise("LORA-API-1")
async def test_a_relative_path_is_seen_from_where_the_server_runs(engine, tmp_path: Path, monkeypatch) -> None:
    write(tmp_path, "a")
    monkeypatch.chdir(tmp_path)
    adapters = ServedAdapters(engine, LoRAServingConfig(), SystemClock())
    info = await adapters.load(AdapterSource("x", "a"))
    assert info.source.path == str(tmp_path / "a")


@pytest.mark.promise("LORA-API-1")
async def test_the_sentence_about_an_unknown_name_stays_short(engine, tmp_path: Path) -> None:
    write(tmp_path, "a")
    adapters = ServedAdapters(engine, LoRAServingConfig(), SystemClock())
    for number in range(200):
        await adapters.load(AdapterSource(f"adapter-{number}", str(tmp_path / "a")))
    with pytest.raises(ModelNotFoundError, match="and 180 more adapters") as caught:
        adapters.resolve("?" * 10_000)
    assert len(str(caught.value)) < 1000


async def test_what_was_loaded_by_hand_under_the_name_of_a_folder_is_left_alone(
    engine, watcher, tmp_path: Path, tmp_path_factory, caplog
) -> None:
    write(tmp_path, "a")
    await watcher.look(is_first=True)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write(elsewhere, "a")
    await engine.load_adapter(AdapterSource("a", str(elsewhere / "a")), replaces=True)
    write(tmp_path, "a", 4)
    for _ in range(2):
        await watcher.look()
    assert "already been loaded" in warnings(caplog)[0]
    shutil.rmtree(tmp_path / "a")
    await watcher.look()
    assert served(engine) == [("a", 2)]


async def test_a_link_to_countless_files_does_not_hold_up_the_other_folders(
    engine, watcher, tmp_path: Path, monkeypatch
) -> None:
    def walk(folder: Path) -> Any:
        if folder.name == "everything":
            return ((str(folder), [], [f"file {index}"]) for index in itertools.count())
        return original(folder)

    original = os.walk
    monkeypatch.setattr(os, "walk", walk)
    write(tmp_path, "a")
    (tmp_path / "everything").symlink_to("/")
    await watcher.look(is_first=True)
    assert served(engine) == [("a", 1)]
