"""A process that dies at any change of the file system, or at any byte: the next one goes on, with the same digest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.transfer_fakes import CHUNK, RANGE_CHUNKS, TUNING, Ask, FakeSource, content, litter, noise, pull, sha256
from vllm_mxext.errors import HubError
from vllm_mxext.hub.store.blobs import BlobStore

pytestmark = pytest.mark.promise("HUB-TRANSFER-1")

DATA = noise(5 * CHUNK + 77)
CHANGES = ("pwrite", "write", "replace", "rename", "mkdir", "unlink", "rmdir", "ftruncate", "open", "fsync", "chmod")


class DeathError(BaseException):
    """The process is dead: nothing that it still does reaches the disk."""


class Mortal:
    """Makes `os` refuse every change from the n-th on; the fatal write leaves half of its bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, dies_at: int | None) -> None:
        self.num_changes = 0
        self.dies_at = dies_at
        for name in CHANGES:
            monkeypatch.setattr(os, name, self._mortal(name, getattr(os, name)))

    def _mortal(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any, **options: Any) -> Any:
            if name == "open" and not arguments[1] & os.O_CREAT:
                return real(*arguments, **options)
            if self.dies_at is not None and self.num_changes >= self.dies_at:
                if self.num_changes == self.dies_at and name in ("pwrite", "write"):
                    file, data, *rest = arguments
                    real(file, bytes(data)[: len(data) // 2], *rest)
                self.num_changes += 1
                raise DeathError
            self.num_changes += 1
            return real(*arguments, **options)

        return change


def num_changes(tmp_path: Path, has_digests: bool) -> int:
    with pytest.MonkeyPatch.context() as patch:
        mortal = Mortal(patch, None)
        pull(FakeSource({"a": DATA}, {"a": "v"}, has_digests=has_digests), tmp_path)
        return mortal.num_changes


@pytest.mark.parametrize("has_digests", [True, False])
def test_death_at_any_change_of_the_file_system_leaves_nothing_wrong(tmp_path: Path, has_digests: bool) -> None:
    count = num_changes(tmp_path / "all", has_digests)
    assert count > 50
    for dies_at in range(count):
        folder = tmp_path / str(dies_at)
        source = FakeSource({"a": DATA}, {"a": "v"}, has_digests=has_digests)
        with pytest.MonkeyPatch.context() as patch:
            Mortal(patch, dies_at)
            with pytest.raises((DeathError, RuntimeError)):
                pull(source, folder)
        is_published = list(BlobStore(folder, CHUNK).digests()) == [sha256(DATA)]
        if is_published:
            assert content(folder, DATA) == DATA
        pull(source, folder)
        assert content(folder, DATA) == DATA, f"died at {dies_at}"
        assert litter(folder) == [] or is_published
        if has_digests or not is_published:
            assert source.num_served <= len(DATA) + CHUNK + source.piece, f"died at {dies_at}"
        shutil.rmtree(folder)


class KilledError(BaseException):
    """The process is killed while it receives."""


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    kills=st.lists(st.integers(0, 30 * CHUNK), max_size=6),
    connections=st.integers(1, 5),
    has_digests=st.booleans(),
    cuts=st.dictionaries(st.integers(0, 12), st.integers(0, 3 * CHUNK), max_size=5),
    sizes=st.lists(st.integers(0, 9 * CHUNK), min_size=1, max_size=4),
)
def test_whatever_history_ends_with_the_same_bytes_and_little_waste(
    tmp_path_factory: pytest.TempPathFactory,
    kills: list[int],
    connections: int,
    has_digests: bool,
    cuts: dict[int, int],
    sizes: list[int],
) -> None:
    folder = tmp_path_factory.mktemp("history")
    contents = {f"f{number}": noise(size, number) for number, size in enumerate(sizes)}
    validators = {path: f'"{path}"' for path in contents}

    def meddle(ask: Ask) -> None:
        ask.cuts_at = cuts.get(ask.number)

    source = FakeSource(contents, validators, meddle, piece=97, has_digests=has_digests)
    patient = replace(TUNING, num_attempts=6)  # more than there are cuts, which may all be of one range

    def kill_at(limit: int) -> Callable[[int], None]:
        def on_piece(served: int) -> None:
            if served >= limit:
                raise KilledError

        return on_piece

    served_before = 0
    for kill in kills:
        source.on_piece = kill_at(served_before + kill)
        with suppress(KilledError):
            pull(source, folder, connections=connections, tuning=patient)
        served_before = source.num_served
        for digest in BlobStore(folder, CHUNK).digests():
            assert sha256(BlobStore(folder, CHUNK).path(digest).read_bytes()) == digest
    source.on_piece = lambda served: None
    fetched = pull(source, folder, connections=connections, tuning=patient)
    assert [file.sha256 for file in fetched] == [sha256(data) for data in contents.values()]
    for data in contents.values():
        assert content(folder, data) == data
    if has_digests:
        distinct = {sha256(data): len(data) for data in contents.values()}
        assert source.num_served <= sum(distinct.values()) + len(kills) * connections * (CHUNK + source.piece)
    shutil.rmtree(folder)


@pytest.mark.parametrize("connections", [1, RANGE_CHUNKS])
def test_a_resumed_download_asks_for_exactly_what_is_missing(tmp_path: Path, connections: int) -> None:
    data = noise(12 * CHUNK)

    def meddle(ask: Ask) -> None:
        if ask.start >= 3 * CHUNK:
            ask.cuts_at = 0 if ask.start % (2 * CHUNK) else CHUNK

    source = FakeSource({"a": data}, {"a": "v"}, meddle)
    with pytest.raises(HubError):
        pull(source, tmp_path, connections=connections)
    before = source.num_served
    source.meddle = lambda ask: None
    pull(source, tmp_path, connections=connections)
    assert content(tmp_path, data) == data
    assert len(data) <= source.num_served <= len(data) + (connections - 1) * CHUNK
    assert 0 < before < len(data)
