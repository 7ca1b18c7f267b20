"""Files of a source become blobs: whole, in parallel, resumed, and never poisoned by what was there before."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.transfer_fakes import CHUNK, Ask, FakeSource, content, litter, noise, pull, sha256
from vllm_mxext.hub.store.blobs import BlobStore
from vllm_mxext.hub.transfer.fetch import Fetched

BIG = noise(20 * CHUNK + 345)
SIZES = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 7 * CHUNK + 5, 20 * CHUNK + 345)


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("has_digests", [True, False])
@pytest.mark.parametrize("has_validators", [True, False])
@pytest.mark.parametrize("has_sizes", [True, False])
def test_files_of_all_sizes_arrive_whole(
    tmp_path: Path, connections: int, has_digests: bool, has_validators: bool, has_sizes: bool
) -> None:
    contents = {f"file-{size:05}": noise(size, size) for size in SIZES}
    validators = {path: f'"{path}"' for path in contents} if has_validators else {}
    source = FakeSource(contents, validators, has_digests=has_digests, has_sizes=has_sizes)
    fetched = pull(source, tmp_path, connections=connections)
    assert fetched == tuple(Fetched(path, len(data), sha256(data)) for path, data in sorted(contents.items()))
    for data in contents.values():
        assert content(tmp_path, data) == data
    assert litter(tmp_path) == []
    if has_sizes or not has_digests:
        assert source.num_served <= sum(map(len, contents.values())) * (1 if has_digests or has_validators else 2)


def test_what_the_store_has_is_not_asked_for(tmp_path: Path) -> None:
    source = FakeSource({"a": BIG, "b": BIG})
    pull(source, tmp_path)
    num_asks = len(source.asks)
    assert pull(source, tmp_path) == (Fetched("a", len(BIG), sha256(BIG)), Fetched("b", len(BIG), sha256(BIG)))
    assert len(source.asks) == num_asks


def test_equal_files_are_fetched_once(tmp_path: Path) -> None:
    source = FakeSource({"a": BIG, "b": BIG}, {"a": "1", "b": "2"})
    pull(source, tmp_path, connections=3)
    assert source.num_served == len(BIG)


def test_chunk_hashes_are_kept_beside_the_blob(tmp_path: Path) -> None:
    pull(FakeSource({"a": BIG}), tmp_path)
    chunks = [BIG[start : start + CHUNK] for start in range(0, len(BIG), CHUNK)]
    assert BlobStore(tmp_path, CHUNK).chunk_hashes(sha256(BIG)) == tuple(map(sha256, chunks))


@pytest.mark.parametrize("cuts_at", [0, 1, 130, CHUNK, CHUNK + 1, 2 * CHUNK + 500])
def test_a_broken_connection_goes_on_where_it_was(tmp_path: Path, cuts_at: int) -> None:
    def meddle(ask: Ask) -> None:
        ask.cuts_at = cuts_at if ask.number % 2 == 0 else None

    source = FakeSource({"a": BIG}, {"a": "v1"}, meddle)
    pull(source, tmp_path)
    assert content(tmp_path, BIG) == BIG
    assert source.num_served == len(BIG)
    assert {ask.validator for ask in source.asks if ask.start} == {"v1"}
