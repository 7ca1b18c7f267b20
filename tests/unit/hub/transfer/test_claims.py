"""Who works on a partial file: one at a time where locks work, each on its own where not; work of the dead goes on."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vllm_mxext.hub.transfer.claims import Claim, Claims, Identity

pytestmark = pytest.mark.promise("HUB-TRANSFER-3")

KEY = "k" * 64
OWN = Identity.own()


@pytest.fixture(params=["raises", "lies"])
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: int, operation: int) -> None:
        if request.param == "raises":
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.fixture
def dead() -> Identity:
    """A process that has ended."""
    process = subprocess.Popen(["sleep", "100"])
    stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    process.kill()
    process.wait()
    return replace(OWN, process=f"{process.pid}_{stat[19]}")


@pytest.fixture
def alive() -> Iterator[Identity]:
    """Another process that is at work."""
    with subprocess.Popen(["sleep", "100"]) as process:
        stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        yield replace(OWN, process=f"{process.pid}_{stat[19]}")
        process.kill()


def take(store: Path, identity: Identity = OWN) -> Claim:
    claim = Claims(store, identity).take(KEY)
    assert claim is not None
    return claim


def left_by(store: Path, identity: Identity, name: str = "aaaa", age_s: float = 0) -> Path:
    """A partial file that somebody works on, or has worked on."""
    folder = store / "partial" / f"{KEY}.{identity.text}.{name}"
    folder.mkdir(parents=True)
    for file in ("data", "chunks"):
        (folder / file).write_text(name)
    for path in (folder / "data", folder / "chunks", folder):
        os.utime(path, (time.time() - age_s, time.time() - age_s))
    return folder


def test_a_second_one_gets_nothing_until_the_first_is_done(tmp_path: Path) -> None:
    first = take(tmp_path)
    assert Claims(tmp_path).take(KEY) is None
    assert Claims(tmp_path).take("another") is not None
    first.release(is_done=True)
    take(tmp_path).release(is_done=True)


def test_what_is_given_back_is_gone_on_with(tmp_path: Path) -> None:
    first = take(tmp_path)
    (first.folder / "data").write_text("half")
    first.release(is_done=False)
    assert (tmp_path / "partial" / KEY / "data").read_text() == "half"
    second = take(tmp_path)
    assert (second.folder / "data").read_text() == "half"
    second.release(is_done=True)
    assert list((tmp_path / "partial").iterdir()) == []
    assert list((tmp_path / "locks").iterdir()) == []


@pytest.mark.parametrize("name", ["dead", "alive"])
def test_who_holds_a_working_lock_goes_on_with_whatever_this_machine_left(
    tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    """Its process may have a number that is another one's here: containers share a volume and a kernel."""
    left_by(tmp_path, request.getfixturevalue(name))
    assert (take(tmp_path).folder / "data").read_text() == "aaaa"


def test_the_one_that_came_furthest_is_gone_on_with_and_others_are_cleared_away(tmp_path: Path, dead: Identity) -> None:
    left_by(tmp_path, dead, "a")
    left_by(tmp_path, dead, "longest")
    left_by(tmp_path, dead, "bb")
    claim = take(tmp_path)
    assert (claim.folder / "data").read_text() == "longest"
    assert list((tmp_path / "partial").iterdir()) == [claim.folder]


def test_another_machine_that_wrote_lately_is_waited_for(tmp_path: Path) -> None:
    other = Identity("othermachine", "1_1", "1")
    left_by(tmp_path, other)
    assert Claims(tmp_path).take(KEY) is None
    assert list((tmp_path / "locks").iterdir()) == []


def test_another_machine_that_wrote_nothing_for_a_while_is_gone_on_with(tmp_path: Path) -> None:
    left_by(tmp_path, Identity("othermachine", "1_1", "1"), age_s=120)
    assert (take(tmp_path).folder / "data").read_text() == "aaaa"


@pytest.mark.usefixtures("without_locks")
def test_without_locks_everybody_has_a_folder_of_his_own(tmp_path: Path, alive: Identity) -> None:
    left_by(tmp_path, alive)
    first, second = take(tmp_path), take(tmp_path)
    assert len({first.folder, second.folder}) == 2
    assert len(list((tmp_path / "partial").iterdir())) == 3
    assert list(second.folder.iterdir()) == []


@pytest.mark.usefixtures("without_locks")
def test_without_locks_what_a_dead_process_left_is_gone_on_with_by_one(tmp_path: Path, dead: Identity) -> None:
    left_by(tmp_path, dead)
    first, second = take(tmp_path), take(tmp_path)
    assert (first.folder / "data").read_text() == "aaaa"
    assert list(second.folder.iterdir()) == []


@pytest.mark.usefixtures("without_locks")
@pytest.mark.parametrize(("age_s", "is_taken"), [(120, False), (7200, True)])
def test_without_locks_what_nobody_can_tell_about_is_left_for_an_hour(
    tmp_path: Path, age_s: float, is_taken: bool
) -> None:
    left_by(tmp_path, Identity("othermachine", "1_1", "1"), age_s=age_s)
    assert (take(tmp_path).folder / "data").exists() == is_taken


def test_a_process_whose_number_is_used_again_is_dead(tmp_path: Path, without_locks: None) -> None:
    left_by(tmp_path, replace(OWN, process=f"{os.getpid()}_1"))
    assert (take(tmp_path).folder / "data").exists()


def test_a_foreign_folder_with_a_similar_name_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "partial" / "import.1234-abcd"
    other.mkdir(parents=True)
    take(tmp_path).release(is_done=True)
    assert other.exists()
