"""Repair fetches the chunks that are damaged and nothing else, and readers never see half a repair."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.transfer_fakes import CHUNK, Ask, FakeSource, content, litter, noise, pull, sha256
from vllm_mxext.config.hub import NetworkConfig
from vllm_mxext.errors import ChecksumError
from vllm_mxext.hub.sources.interface import RemoteFile
from vllm_mxext.hub.store.blobs import BlobStore
from vllm_mxext.hub.transfer.fetch import Wanted
from vllm_mxext.hub.transfer.repair import repair_blob

pytestmark = pytest.mark.promise("HUB-TRANSFER-5")

DATA = noise(9 * CHUNK + 5)
DIGEST = sha256(DATA)


@pytest.fixture
def source(tmp_path: Path) -> FakeSource:
    source = FakeSource({"a": DATA}, {"a": "v"})
    pull(source, tmp_path)
    source.asks.clear()
    source.num_served = 0
    return source


def damage(folder: Path, data: bytes) -> Path:
    path = BlobStore(folder, CHUNK).path(DIGEST)
    path.chmod(0o644)
    path.write_bytes(data)
    return path


def repair(source: FakeSource, folder: Path, *bad: int) -> None:
    wanted = Wanted(RemoteFile("a", len(DATA), None, "locator/a"), source)
    repair_blob(DIGEST, bad, wanted, BlobStore(folder, CHUNK), NetworkConfig(num_connections=2), model="m")


def flipped(*offsets: int) -> bytes:
    data = bytearray(DATA)
    for offset in offsets:
        data[offset] ^= 1
    return bytes(data)


def test_only_bad_chunks_are_fetched_and_readers_keep_what_they_have_open(tmp_path: Path, source: FakeSource) -> None:
    wrong = flipped(2 * CHUNK + 3, 9 * CHUNK)
    with damage(tmp_path, wrong).open("rb") as reader:
        repair(source, tmp_path, 2, 9)
        assert reader.read() == wrong
    assert content(tmp_path, DATA) == DATA
    assert sorted((ask.start, ask.end) for ask in source.asks) == [(2 * CHUNK, 3 * CHUNK), (9 * CHUNK, None)]
    assert source.num_served == CHUNK + 5
    assert litter(tmp_path) == []
    assert len(BlobStore(tmp_path, CHUNK).chunk_hashes(DIGEST) or ()) == 10


def test_a_bad_chunk_that_was_not_named_is_found(tmp_path: Path, source: FakeSource) -> None:
    damage(tmp_path, flipped(2 * CHUNK, 5 * CHUNK))
    repair(source, tmp_path, 2)
    assert content(tmp_path, DATA) == DATA
    assert source.num_served == 2 * CHUNK


def test_a_file_that_was_cut_off_gets_its_end(tmp_path: Path, source: FakeSource) -> None:
    damage(tmp_path, DATA[: 6 * CHUNK + 1])
    repair(source, tmp_path)
    assert content(tmp_path, DATA) == DATA
    assert source.num_served == len(DATA) - 6 * CHUNK


@pytest.mark.parametrize("has_wrong_hashes", [True, False])
def test_without_right_chunk_hashes_all_is_fetched(tmp_path: Path, source: FakeSource, has_wrong_hashes: bool) -> None:
    path = damage(tmp_path, flipped(7))
    hashes = path.with_name(path.name + ".chunks")
    if has_wrong_hashes:
        lines = hashes.read_text().split()
        hashes.write_text("\n".join([lines[0], sha256(flipped(7)[:CHUNK]), *lines[2:]]))
    else:
        hashes.unlink()
    repair(source, tmp_path)
    assert content(tmp_path, DATA) == DATA
    assert source.num_served == len(DATA)


def test_a_source_with_another_file_repairs_nothing(tmp_path: Path, source: FakeSource) -> None:
    wrong = flipped(2 * CHUNK)
    damage(tmp_path, wrong)

    def meddle(ask: Ask) -> None:
        ask.data = noise(len(DATA), 9)

    source.meddle = meddle
    with pytest.raises(ChecksumError, match=DIGEST):
        repair(source, tmp_path, 2)
    assert BlobStore(tmp_path, CHUNK).path(DIGEST).read_bytes() == wrong
    assert litter(tmp_path) == []
