"""Disks that are full, read-only or out of files: one sentence with a remedy, nothing half-published, work kept."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.transfer_fakes import CHUNK, TUNING, FakeSource, NoWaiting, content, litter, noise, pull, sha256
from vllm_mxext.config.hub import NetworkConfig
from vllm_mxext.errors import HubCause, StoreError
from vllm_mxext.hub.store.blobs import BlobStore
from vllm_mxext.hub.transfer.fetch import fetch
from vllm_mxext.hub.transfer.order import Tuning

pytestmark = pytest.mark.promise("HUB-TRANSFER-4")

DATA = noise(9 * CHUNK + 5)
MB = 2**20


def blobs(folder: Path) -> list[str]:
    return list(BlobStore(folder, CHUNK).digests())


@pytest.mark.parametrize(
    ("number", "cause", "remedy"),
    [
        (errno.ENOSPC, HubCause.NO_SPACE, "mxext hub gc"),
        (errno.EDQUOT, HubCause.NO_SPACE, "mxext hub gc"),
        (errno.EROFS, HubCause.NO_PERMISSION, "--download-dir"),
        (errno.EACCES, HubCause.NO_PERMISSION, "--download-dir"),
        (errno.EMFILE, HubCause.FAILED, "ulimit -n"),
        (errno.EIO, HubCause.FAILED, "check the disk"),
    ],
)
@pytest.mark.parametrize("call", ["pwrite", "open", "replace", "fsync", "mkdir"])
@pytest.mark.parametrize("connections", [1, 3])
def test_trouble_with_the_disk_is_said_and_the_next_attempt_goes_on(
    tmp_path: Path, number: int, cause: HubCause, remedy: str, call: str, connections: int
) -> None:
    num_calls = 0
    real = getattr(os, call)

    def fails_later(*arguments: Any, **options: Any) -> Any:
        nonlocal num_calls
        if call == "open" and not arguments[1] & os.O_CREAT:
            return real(*arguments, **options)
        num_calls += 1
        if num_calls > (20 if call == "pwrite" else 0):
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    source = FakeSource({"a": DATA}, {"a": "v"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, call, fails_later)
        with pytest.raises(StoreError) as caught:
            pull(source, tmp_path, connections=connections)
    assert caught.value.cause is cause
    assert str(tmp_path) in str(caught.value)
    assert remedy in str(caught.value)
    assert str(caught.value).endswith(".")
    assert blobs(tmp_path) == []
    pull(source, tmp_path, connections=connections)
    assert content(tmp_path, DATA) == DATA
    assert source.num_served <= len(DATA) + connections * (CHUNK + source.piece)
    assert litter(tmp_path) == []


def test_what_cannot_fit_is_refused_before_anything_is_asked_for(tmp_path: Path) -> None:
    source = FakeSource({"a": DATA, "b": noise(50)}, {"a": "v"})
    status = os.statvfs(tmp_path)

    def nearly_full(path: object) -> os.statvfs_result:
        return os.statvfs_result((1, 1, 100, 9, 9, *tuple(status)[5:]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "statvfs", nearly_full)
        with pytest.raises(StoreError, match="are still to be downloaded") as caught:
            pull(source, tmp_path / "new" / "folder")
    for text in ("8.84 KiB", "9 B", "8.83 KiB", str(tmp_path / "new" / "folder")):
        assert text in str(caught.value)
    assert caught.value.cause is HubCause.NO_SPACE
    assert source.asks == []
    assert not (tmp_path / "new").exists()


def test_what_is_there_already_needs_no_space(tmp_path: Path) -> None:
    source = FakeSource({"a": DATA}, {"a": "v"}, lambda ask: None)
    pull(source, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "statvfs", lambda path: os.statvfs_result((1, 1, 0, 0, 0, 0, 0, 0, 0, 0)))
        pull(source, tmp_path)


def test_a_store_that_can_only_be_read_serves_what_it_has(tmp_path: Path) -> None:
    source = FakeSource({"a": DATA}, {"a": "v"})
    pull(source, tmp_path)

    def refuses(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.MonkeyPatch.context() as patch:
        for call in ("mkdir", "rename", "replace", "unlink", "pwrite", "chmod"):
            patch.setattr(os, call, refuses)
        assert pull(source, tmp_path)[0].sha256 == sha256(DATA)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    yield from _mounted(folder, "-o", "size=20m")


def _mounted(folder: Path, *options: str) -> Iterator[Path]:
    if not sys.platform.startswith("linux"):
        pytest.skip("file systems in memory are mounted on Linux only")
    command = ["mount", "-t", "tmpfs", *options, "none", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def big_pull(source: FakeSource, folder: Path, tuning: Tuning = TUNING) -> None:
    fetch(
        source.wanted(), BlobStore(folder, 256 * 1024), NetworkConfig(num_connections=3), model="m",
        clock=NoWaiting(), tuning=tuning,
    )  # fmt: skip


def test_a_disk_that_is_too_small_is_known_in_advance(small_disk: Path) -> None:
    source = FakeSource({"a": bytes(15 * MB), "b": noise(10 * MB)}, piece=64 * 1024)
    with pytest.raises(StoreError, match=r"25\.00 MiB are still to be downloaded.*20\.00 MiB are free") as caught:
        big_pull(source, small_disk)
    assert caught.value.cause is HubCause.NO_SPACE
    assert source.asks == []


def test_a_disk_that_others_fill_meanwhile_ends_the_download_and_keeps_what_arrived(small_disk: Path) -> None:
    """The space of a file is reserved when it begins: only the other file is in trouble."""
    data = {"a": noise(8 * MB, 1), "b": noise(8 * MB, 2)}
    ballast = small_disk / "ballast"

    def fill(served: int) -> None:
        if served > MB and not ballast.exists():
            status = os.statvfs(small_disk)
            ballast.write_bytes(bytes(status.f_bavail * status.f_frsize - 64 * 1024))

    source = FakeSource(data, {"a": "v", "b": "w"}, piece=64 * 1024, on_piece=fill, has_sizes=False)
    fetch_one = Tuning(range_chunks=4, num_attempts=2, spare_bytes=0, busy_s=0.01)
    with pytest.raises(StoreError) as caught:
        fetch(
            source.wanted(), BlobStore(small_disk, 256 * 1024), NetworkConfig(num_connections=1), model="m",
            clock=NoWaiting(), tuning=fetch_one,
        )  # fmt: skip
    assert caught.value.cause is HubCause.NO_SPACE
    assert "mxext hub gc" in str(caught.value)
    assert list(BlobStore(small_disk).digests()) == [sha256(data["a"])]
    ballast.unlink()
    source.on_piece = lambda served: None
    big_pull(source, small_disk)
    assert content(small_disk, data["b"]) == data["b"]
    assert source.num_served <= 16 * MB + 256 * 1024


def test_a_disk_without_a_place_for_the_journal_keeps_what_was_noted(small_disk: Path) -> None:
    """Without a size nothing can be reserved, so that the disk runs full in the middle of a chunk."""
    data = noise(24 * MB, 3)
    source = FakeSource({"a": data}, {"a": "v"}, lambda ask: setattr(ask, "total_size", None), 64 * 1024)
    source.has_sizes = False
    with pytest.raises(StoreError) as caught:
        big_pull(source, small_disk)
    assert caught.value.cause is HubCause.NO_SPACE
    assert list(BlobStore(small_disk).digests()) == []
    assert 19 * MB < source.num_served <= 20 * MB + 64 * 1024


def test_a_read_only_file_system_is_named(small_disk: Path) -> None:
    source = FakeSource({"a": noise(MB)}, piece=64 * 1024)
    big_pull(source, small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    big_pull(source, small_disk)
    other = FakeSource({"a": noise(MB, 7)}, piece=64 * 1024)
    with pytest.raises(StoreError, match=r"Read-only file system.*--download-dir") as caught:
        big_pull(other, small_disk)
    assert caught.value.cause is HubCause.NO_PERMISSION
    assert other.asks == []
