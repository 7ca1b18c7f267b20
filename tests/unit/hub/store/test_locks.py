"""Locks between processes: who waits for whom, how long, and what is said."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from vllm_mxext.errors import HubCause, StoreError
from vllm_mxext.hub.store.locks import Clock, holding


class Waiting:
    """A clock that only moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.on_sleep: list[Any] = []

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        for action in self.on_sleep:
            action()

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.now_s, self.sleep)


def test_shared_locks_go_together_and_an_exclusive_one_waits(tmp_path: Path) -> None:
    waiting = Waiting()
    first = holding(tmp_path, "store", purpose="pull", is_shared=True)
    second = holding(tmp_path, "store", purpose="publish", is_shared=True)
    first.__enter__()
    with second as lock:
        assert lock.works
    waiting.on_sleep = [lambda: first.__exit__(None, None, None) if waiting.now_s > 1 else None]
    with holding(tmp_path, "store", purpose="gc", timeout_s=5, clock=waiting.clock) as lock:
        assert lock.works
        assert 1 < waiting.now_s < 2


def test_who_waits_in_vain_is_told_who_has_the_lock(tmp_path: Path) -> None:
    waiting = Waiting()
    with holding(tmp_path, "store", purpose="gc"):
        message = rf"in use by process {os.getpid()} on \S+ since \d{{4}}-.* \(gc\); try again when that has ended"
        with pytest.raises(StoreError, match=message):
            holding(tmp_path, "store", purpose="x", is_shared=True, timeout_s=3, clock=waiting.clock).__enter__()
        assert 3 <= waiting.now_s < 3.2
        for text in ("", "[]", json.dumps({"since": 1e99, "process": "x"}), "\xff"):
            (tmp_path / "locks" / "store.lock").write_text(text)
            with pytest.raises(StoreError, match="is in use; try again"):
                holding(tmp_path, "store", purpose="x", timeout_s=0, clock=waiting.clock).__enter__()


def test_a_lock_is_given_back_when_its_holder_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), holding(tmp_path, "store", purpose="gc"):
        raise RuntimeError
    with holding(tmp_path, "store", purpose="gc", timeout_s=0) as lock:
        assert lock.works


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_without_locks_holders_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(*_args: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    for is_shared in (False, True):
        with holding(tmp_path, "store", purpose="gc", is_shared=is_shared) as lock:
            assert not lock.works


def test_locks_that_let_everybody_in_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_args: None)
    with holding(tmp_path, "store", purpose="gc") as lock:
        assert not lock.works


def test_other_trouble_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is no folder of models"):
        holding(tmp_path / "file", "store", purpose="gc").__enter__()

    def flock(*_args: Any) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StoreError, match="give this user the right") as caught:
        holding(tmp_path, "store", purpose="gc").__enter__()
    assert caught.value.cause is HubCause.NO_PERMISSION
