"""Blobs are whole, read-only files named by their digest, with the digests of their chunks beside them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.transfer_fakes import CHUNK, noise, sha256
from vllm_mxext.hub.store.blobs import BlobStore

pytestmark = pytest.mark.promise("HUB-TRANSFER-1")

DATA = noise(3 * CHUNK + 1)
HASHES = tuple(sha256(DATA[start : start + CHUNK]) for start in range(0, len(DATA), CHUNK))


def adopted(folder: Path, data: bytes = DATA, hashes: tuple[str, ...] = HASHES, **options: bool) -> Path:
    draft = folder / "draft"
    folder.mkdir(exist_ok=True)
    draft.write_bytes(data)
    path = BlobStore(folder, CHUNK).adopt(draft, sha256(DATA), hashes, **options)
    assert not draft.exists()
    return path


def test_what_was_adopted_is_found_read_only_with_its_chunks(tmp_path: Path) -> None:
    path = adopted(tmp_path)
    blobs = BlobStore(tmp_path, CHUNK)
    assert blobs.find(sha256(DATA)) == path == tmp_path / "blobs" / f"sha256-{sha256(DATA)}"
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (DATA, 0o444)
    assert blobs.chunk_hashes(sha256(DATA)) == HASHES
    assert (list(blobs.digests()), blobs.size(sha256(DATA))) == ([sha256(DATA)], len(DATA))


def test_what_is_not_there_is_nowhere(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "none", CHUNK)
    assert blobs.find(sha256(b"")) is None
    assert blobs.size(sha256(b"")) is None
    assert blobs.chunk_hashes(sha256(b"")) is None
    assert list(blobs.digests()) == []
    blobs.remove(sha256(b""))


def test_the_first_of_two_stays_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    first = os.stat(adopted(tmp_path)).st_ino
    assert os.stat(adopted(tmp_path)).st_ino == first
    with (tmp_path / "blobs" / f"sha256-{sha256(DATA)}").open("rb") as reader:
        assert os.stat(adopted(tmp_path, replaces=True)).st_ino != first
        assert reader.read() == DATA


def test_a_file_of_one_chunk_has_its_own_digest_as_chunk_hash(tmp_path: Path) -> None:
    data = b"small"
    (tmp_path / "draft").write_bytes(data)
    blobs = BlobStore(tmp_path, CHUNK)
    blobs.adopt(tmp_path / "draft", sha256(data), (sha256(data),))
    assert blobs.chunk_hashes(sha256(data)) == (sha256(data),)
    assert len(list((tmp_path / "blobs").iterdir())) == 1


@pytest.mark.parametrize("content", ["", "5\n", "x", f"{CHUNK}\nabc\n", "\udcff"])
def test_chunk_hashes_that_make_no_sense_are_as_none(tmp_path: Path, content: str) -> None:
    path = adopted(tmp_path)
    path.with_name(path.name + ".chunks").write_bytes(content.encode(errors="surrogateescape"))
    assert not BlobStore(tmp_path, CHUNK).chunk_hashes(sha256(DATA))


def test_removed_blobs_leave_nothing(tmp_path: Path) -> None:
    adopted(tmp_path)
    BlobStore(tmp_path, CHUNK).remove(sha256(DATA))
    assert list((tmp_path / "blobs").iterdir()) == []


def test_other_places_are_asked_for_what_is_not_here(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    blobs = BlobStore(tmp_path, CHUNK, [lambda digest: None, lambda digest: elsewhere])
    assert blobs.find(sha256(DATA)) == elsewhere
    assert blobs.find(sha256(DATA)) != adopted(tmp_path)
    assert list(blobs.digests()) == [sha256(DATA)]


@pytest.mark.parametrize("text", ["", "../../etc/passwd", "A" * 64, "a" * 63])
def test_what_is_no_digest_never_becomes_a_path(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="is no SHA-256"):
        BlobStore(tmp_path).find(text)
