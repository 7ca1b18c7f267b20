"""Servers that flip, ignore ranges, cut, lie and change files: the result is right, or there is an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.transfer_fakes import CHUNK, Ask, FakeSource, NoWaiting, content, litter, noise, pull, sha256
from vllm_mxext.errors import ChecksumError, DownloadError, HubCause, TransferError
from vllm_mxext.hub.store.blobs import BlobStore

DATA = noise(11 * CHUNK + 77)
OTHER = noise(11 * CHUNK + 77, seed=1)
both = pytest.mark.parametrize("connections", [1, 4])
pytestmark = pytest.mark.promise("HUB-TRANSFER-2")


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def blobs(folder: Path) -> list[str]:
    return sorted(BlobStore(folder, CHUNK).digests())


@both
@pytest.mark.parametrize("at", [0, CHUNK, 5 * CHUNK + 3, len(DATA) - 1])
def test_a_flipped_byte_is_found_and_a_second_download_from_scratch_is_right(
    tmp_path: Path, connections: int, at: int
) -> None:
    def meddle(ask: Ask) -> None:
        is_first = sum(before.start == ask.start for before in source.asks) == 1
        ask.data = flipped(DATA, at) if is_first else DATA

    source = FakeSource({"a": DATA}, {"a": "v"}, meddle)
    pull(source, tmp_path, connections=connections)
    assert content(tmp_path, DATA) == DATA
    assert source.num_served == 2 * len(DATA)
    assert litter(tmp_path) == []


@both
def test_a_file_that_is_wrong_twice_is_refused_with_both_digests(tmp_path: Path, connections: int) -> None:
    def meddle(ask: Ask) -> None:
        ask.data = OTHER

    source = FakeSource({"a": DATA}, {"a": "v"}, meddle)
    with pytest.raises(ChecksumError) as caught:
        pull(source, tmp_path, connections=connections)
    for text in ("a of fake://model", sha256(DATA), sha256(OTHER)):
        assert text in str(caught.value)
    assert source.num_served == 2 * len(DATA)
    assert (blobs(tmp_path), litter(tmp_path)) == ([], [])


@both
@pytest.mark.parametrize("has_digests", [True, False])
@pytest.mark.parametrize("has_validators", [True, False])
def test_a_server_that_ignores_ranges_is_read_in_one_stream(
    tmp_path: Path, connections: int, has_digests: bool, has_validators: bool
) -> None:
    def meddle(ask: Ask) -> None:
        ask.ignores_range = True
        ask.cuts_at = 4 * CHUNK + 10 if ask.number == 0 else None

    validators = {"a": "v"} if has_validators else {}
    source = FakeSource({"a": DATA}, validators, meddle, has_digests=has_digests)
    pull(source, tmp_path, connections=connections)
    assert content(tmp_path, DATA) == DATA
    assert source.num_served <= len(DATA) + (connections + 1) * (4 * CHUNK + 10 + source.piece)


@both
@pytest.mark.parametrize("has_digests", [True, False])
def test_a_server_that_ignores_only_later_ranges_loses_nothing(
    tmp_path: Path, connections: int, has_digests: bool
) -> None:
    def meddle(ask: Ask) -> None:
        ask.ignores_range = ask.number > 2

    source = FakeSource({"a": DATA}, {"a": "v"}, meddle, has_digests=has_digests)
    pull(source, tmp_path, connections=connections)
    assert content(tmp_path, DATA) == DATA


@both
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_file_that_changes_meanwhile_is_fetched_anew_as_a_whole(
    tmp_path: Path, connections: int, number: int
) -> None:
    def meddle(ask: Ask) -> None:
        if ask.number >= number:
            ask.data, ask.answer_validator = OTHER, "new"

    source = FakeSource({"a": DATA}, {"a": "old"}, meddle, has_digests=False)
    (fetched,) = pull(source, tmp_path, connections=connections)
    assert fetched.sha256 == sha256(OTHER)
    assert content(tmp_path, OTHER) == OTHER


@both
@pytest.mark.parametrize("ignores_if_range", [True, False])
def test_a_file_that_gets_another_length_meanwhile_is_fetched_anew(
    tmp_path: Path, connections: int, ignores_if_range: bool
) -> None:
    longer = noise(17 * CHUNK + 1, seed=2)

    def meddle(ask: Ask) -> None:
        ask.ignores_if_range = ignores_if_range
        if ask.number >= 2:
            ask.data, ask.answer_validator, ask.total_size = longer, "new", len(longer)

    source = FakeSource({"a": DATA}, {"a": "old"}, meddle, has_digests=False, has_sizes=False)
    source.meddle = meddle

    def cut_first(ask: Ask) -> None:
        ask.cuts_at = 2 * CHUNK + 9 if ask.number < 2 else None
        meddle(ask)

    source.meddle = cut_first
    (fetched,) = pull(source, tmp_path, connections=connections)
    assert (fetched.sha256, fetched.size) == (sha256(longer), len(longer))


def test_a_file_that_always_changes_is_given_up(tmp_path: Path) -> None:
    def meddle(ask: Ask) -> None:
        ask.data, ask.answer_validator = noise(len(DATA), ask.number), f"v{ask.number}"
        ask.cuts_at = CHUNK + ask.number

    source = FakeSource({"a": DATA}, {"a": "v"}, meddle, has_digests=False)
    with pytest.raises(DownloadError, match="changes while it is downloaded"):
        pull(source, tmp_path)
    assert blobs(tmp_path) == []


@both
def test_servers_that_name_the_same_bytes_differently_are_believed_if_the_digest_is_known(
    tmp_path: Path, connections: int
) -> None:
    def meddle(ask: Ask) -> None:
        ask.answer_validator = f"node-{ask.number}"

    source = FakeSource({"a": DATA}, {"a": "v"}, meddle)
    pull(source, tmp_path, connections=connections)
    assert content(tmp_path, DATA) == DATA


@both
@pytest.mark.parametrize("has_digests", [True, False])
@pytest.mark.parametrize("says_length", [True, False])
def test_an_error_page_with_status_200_does_not_get_into_the_file(
    tmp_path: Path, connections: int, has_digests: bool, says_length: bool
) -> None:
    page = b"<html>Please log in</html>" * 60

    def meddle(ask: Ask) -> None:
        if ask.number % 3 == 0 and ask.number < 9:
            ask.data, ask.answer_validator, ask.ignores_range = page, None, True
            ask.total_size = len(page) if says_length else None

    source = FakeSource({"a": DATA}, {"a": "v"}, meddle, has_digests=has_digests)
    pull(source, tmp_path, connections=connections)
    assert content(tmp_path, DATA) == DATA


def test_a_server_that_only_has_an_error_page_is_given_up_with_a_hint(tmp_path: Path) -> None:
    def meddle(ask: Ask) -> None:
        ask.data, ask.total_size, ask.ignores_range = b"<html>", 6, True

    with pytest.raises(DownloadError, match=r"answered with 6 bytes for a, which has 11077.*login page") as caught:
        pull(FakeSource({"a": DATA}, {"a": "v"}, meddle), tmp_path)
    assert "attempt 4 without progress" in str(caught.value)
    assert blobs(tmp_path) == []


@both
def test_answers_that_are_shorter_than_asked_for_are_gone_on_with(tmp_path: Path, connections: int) -> None:
    def meddle(ask: Ask) -> None:
        ask.ends_at = CHUNK + 300

    source = FakeSource({"a": DATA}, {"a": "v"}, meddle)
    pull(source, tmp_path, connections=connections)
    assert content(tmp_path, DATA) == DATA


def test_attempts_are_counted_only_without_progress(tmp_path: Path) -> None:
    clock = NoWaiting()

    def meddle(ask: Ask) -> None:
        ask.cuts_at = 1 if ask.number < 60 else None

    pull(FakeSource({"a": DATA}, {"a": "v"}, meddle), tmp_path, clock=clock)
    assert content(tmp_path, DATA) == DATA
    assert len(clock.slept_s) == 60


def test_a_dead_server_is_given_up_after_some_attempts(tmp_path: Path) -> None:
    def meddle(ask: Ask) -> None:
        ask.error = TransferError("nobody.example cannot be reached; check the network.", retry_after_s=7.0)

    clock = NoWaiting()
    source = FakeSource({"a": DATA}, {"a": "v"}, meddle)
    with pytest.raises(DownloadError, match="cannot be reached; check the network; that was attempt 4") as caught:
        pull(source, tmp_path, clock=clock)
    assert caught.value.cause is HubCause.UNREACHABLE
    assert len(source.asks) == 4
    assert len(clock.slept_s) == 3
    assert all(7 <= slept <= 12 for slept in clock.slept_s)


def test_what_asking_again_does_not_help_against_is_not_asked_again(tmp_path: Path) -> None:
    def meddle(ask: Ask) -> None:
        ask.error = DownloadError("Not allowed; accept the licence.", cause=HubCause.UNAUTHORIZED)

    source = FakeSource({"a": DATA}, {"a": "v"}, meddle)
    with pytest.raises(DownloadError, match="accept the licence"):
        pull(source, tmp_path)
    assert len(source.asks) == 1


def test_a_server_that_never_gets_further_is_given_up_even_if_it_sends_much(tmp_path: Path) -> None:
    def meddle(ask: Ask) -> None:
        ask.ignores_range, ask.cuts_at = True, 5 * CHUNK + 1

    source = FakeSource({"a": DATA}, {}, meddle, has_digests=False)
    with pytest.raises(DownloadError, match="without progress"):
        pull(source, tmp_path)
    assert len(source.asks) == 5


Damage = Callable[[Path], None]


def _flip_data(folder: Path) -> None:
    data = folder / "data"
    data.write_bytes(flipped(data.read_bytes(), 2 * CHUNK + 1))


def _flip_all_data(folder: Path) -> None:
    data = folder / "data"
    data.write_bytes(bytes(byte ^ 0xFF for byte in data.read_bytes()))


def _shorten_data(folder: Path) -> None:
    data = folder / "data"
    data.write_bytes(data.read_bytes()[:1234])


def _lose_data(folder: Path) -> None:
    (folder / "data").unlink()


def _lie_in_journal(folder: Path) -> None:
    with (folder / "chunks").open("a") as file:
        file.write(f"9 {sha256(b'nothing')}\n999999 {sha256(b'')}\n7 abc\n\0\0\0\n8 {'0' * 63}")


def _other_journal(folder: Path) -> None:
    (folder / "chunks").write_bytes(noise(500))


def _other_origin(folder: Path) -> None:
    (folder / "meta").write_text('{"size": [], "uri": 1}')


def _lose_origin(folder: Path) -> None:
    (folder / "meta").unlink()


@both
@pytest.mark.parametrize("has_digests", [True, False])
@pytest.mark.parametrize(
    "damage",
    [
        _flip_data, _flip_all_data, _shorten_data, _lose_data, _lie_in_journal, _other_journal, _other_origin,
        _lose_origin,
    ],
)  # fmt: skip
def test_what_was_damaged_between_two_attempts_is_fetched_again(
    tmp_path: Path, connections: int, has_digests: bool, damage: Damage
) -> None:
    def meddle(ask: Ask) -> None:
        ask.cuts_at = 0 if ask.start >= 6 * CHUNK else None

    source = FakeSource({"a": DATA}, {"a": "v"}, meddle, has_digests=has_digests)
    with pytest.raises(DownloadError):
        pull(source, tmp_path)
    (folder,) = (tmp_path / "partial").iterdir()
    damage(folder)
    source.meddle, source.num_served = lambda ask: None, 0
    pull(source, tmp_path, connections=connections)
    assert content(tmp_path, DATA) == DATA
    assert source.num_served <= len(DATA)
    assert litter(tmp_path) == []


@both
@pytest.mark.parametrize("has_digests", [True, False])
def test_what_arrived_of_an_older_version_is_not_mixed_with_the_new_one(
    tmp_path: Path, connections: int, has_digests: bool
) -> None:
    def meddle(ask: Ask) -> None:
        ask.cuts_at = 0 if ask.start >= 6 * CHUNK else None

    source = FakeSource({"a": DATA}, {"a": "old"}, meddle, has_digests=has_digests)
    with pytest.raises(DownloadError):
        pull(source, tmp_path)
    newer = FakeSource({"a": OTHER}, {"a": "new"}, has_digests=has_digests)
    (fetched,) = pull(newer, tmp_path, connections=connections)
    assert fetched.sha256 == sha256(OTHER)
    assert content(tmp_path, OTHER) == OTHER


def test_a_mirror_goes_on_with_what_another_one_began_if_the_digest_is_known(tmp_path: Path) -> None:
    def meddle(ask: Ask) -> None:
        ask.cuts_at = 0 if ask.start >= 6 * CHUNK else None

    with pytest.raises(DownloadError):
        pull(FakeSource({"a": DATA}, {"a": "v"}, meddle), tmp_path)
    mirror = FakeSource({"a": DATA}, {"a": "w"}, uri="mirror://model")
    pull(mirror, tmp_path, connections=3)
    assert content(tmp_path, DATA) == DATA
    assert mirror.num_served == len(DATA) - 6 * CHUNK
    assert {ask.validator for ask in mirror.asks} == {None}


def test_without_validator_and_digest_nothing_is_resumed(tmp_path: Path) -> None:
    def meddle(ask: Ask) -> None:
        ask.cuts_at = 6 * CHUNK

    with pytest.raises(DownloadError):
        pull(FakeSource({"a": DATA}, {}, meddle, has_digests=False), tmp_path)
    source = FakeSource({"a": OTHER}, {}, has_digests=False)
    (fetched,) = pull(source, tmp_path)
    assert fetched.sha256 == sha256(OTHER)
