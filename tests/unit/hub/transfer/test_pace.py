"""Limits on bytes per second, waits between attempts, progress events, and stopping."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.transfer_fakes import CHUNK, Ask, FakeSource, NoWaiting, content, noise, pull
from vllm_mxext.config.hub import NetworkConfig
from vllm_mxext.errors import DownloadError, HubCause
from vllm_mxext.hub.progress import Phase, Progress
from vllm_mxext.hub.retrying import wait_s
from vllm_mxext.hub.store.blobs import BlobStore
from vllm_mxext.hub.transfer.fetch import fetch
from vllm_mxext.hub.transfer.meter import Meter
from vllm_mxext.hub.transfer.pace import TokenBucket

pytestmark = pytest.mark.promise("HUB-TRANSFER-6")

DATA = noise(12 * CHUNK)


def test_no_more_bytes_pass_than_allowed_after_the_first_quarter_of_a_second() -> None:
    clock = NoWaiting()
    bucket = TokenBucket(1000, clock)
    started = clock.now_s
    for _ in range(50):
        bucket.take(100, threading.Event())
    assert clock.now_s - started == pytest.approx(5.0, abs=0.26)


def test_idle_time_is_not_saved_up() -> None:
    clock = NoWaiting()
    bucket = TokenBucket(1000, clock)
    clock.now_s += 3600
    started = clock.now_s
    bucket.take(1000, threading.Event())
    assert clock.now_s - started == pytest.approx(0.75)


def test_a_download_keeps_to_its_limit(tmp_path: Path) -> None:
    clock = NoWaiting()
    source = FakeSource({"a": DATA})
    started = clock.now_s
    fetch(
        source.wanted(), BlobStore(tmp_path, CHUNK), NetworkConfig(num_connections=1, bytes_per_s=1000), model="m",
        clock=clock,
    )  # fmt: skip
    assert clock.now_s - started == pytest.approx(12.0, abs=0.3)


def test_waits_grow_with_failures_up_to_a_bound_and_heed_the_server() -> None:
    assert [wait_s(attempt, None, lambda: 1.0) for attempt in (1, 2, 3, 9, 99_999)] == [1, 2, 4, 30, 30]
    assert wait_s(3, None, lambda: 0.0) == 0
    assert wait_s(1, 12.0, lambda: 1.0) == 13
    assert wait_s(1, 86_400.0, lambda: 0.0) == 300


def test_events_tell_rate_over_the_last_seconds_and_time_left() -> None:
    clock, events = NoWaiting(), list[Progress]()
    meter = Meter("m", events.append, clock)
    for _ in range(10):
        meter.received(1000)
        clock.now_s += 1
        meter.tell(0, 0, 0, 1)
    for _ in range(6):
        meter.received(100)
        clock.now_s += 1
        meter.tell(1000, 4000, 0, 1)
    assert events[9].rate_bytes_s == pytest.approx(1000)
    assert events[9].eta_s is None
    assert events[-1].rate_bytes_s == pytest.approx(100)
    assert events[-1].eta_s == pytest.approx(30)


def test_events_come_at_most_four_times_a_second() -> None:
    clock = NoWaiting()
    meter = Meter("m", lambda progress: None, clock)
    num_told = 0
    for _ in range(1000):
        clock.now_s += 0.01
        if meter.is_due:
            meter.tell(0, 0, 0, 0)
            num_told += 1
    assert 30 <= num_told <= 41


def test_the_last_event_of_a_download_says_that_all_is_there(tmp_path: Path) -> None:
    events = list[Progress]()
    source = FakeSource({"a": DATA, "b": DATA, "c": noise(10)}, has_sizes=False)
    pull(source, tmp_path, listener=events.append)
    last = events[-1]
    assert (last.phase, last.done_bytes, last.total_bytes) == (Phase.DOWNLOADING, len(DATA) + 10, len(DATA) + 10)
    assert (last.num_files_done, last.num_files) == (3, 3)


@pytest.mark.parametrize("connections", [1, 4])
def test_a_download_that_is_stopped_keeps_what_arrived(tmp_path: Path, connections: int) -> None:
    seen = threading.Event()

    class Stop(threading.Event):
        def is_set(self) -> bool:
            if super().is_set():
                seen.set()
            return super().is_set()

    stop = Stop()

    def on_piece(served: int) -> None:
        if served >= 5 * CHUNK:
            stop.set()
            seen.wait()

    source = FakeSource({"a": DATA}, {"a": "v"}, on_piece=on_piece)
    with pytest.raises(DownloadError, match="interrupted") as caught:
        pull(source, tmp_path, connections=connections, stop=stop)
    assert caught.value.cause is HubCause.INTERRUPTED
    before = source.num_served
    source.on_piece = lambda served: None
    pull(source, tmp_path)
    assert content(tmp_path, DATA) == DATA
    assert source.num_served - before < len(DATA)


def test_an_interrupt_of_the_calling_thread_ends_all_others(tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done_bytes:
            gate.set()
            raise KeyboardInterrupt

    def wait(served: int) -> None:
        if served >= 5 * CHUNK:
            gate.wait()

    gate = threading.Event()
    source = FakeSource({"a": DATA}, {"a": "v"}, on_piece=wait)
    clock = NoWaiting()
    clock.monotonic = lambda: clock.__dict__.__setitem__("now_s", clock.now_s + 1) or clock.now_s  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        pull(source, tmp_path, listener=interrupt, clock=clock)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("hub-hash")] == []
    source.on_piece = lambda served: None
    pull(source, tmp_path)
    assert content(tmp_path, DATA) == DATA


def test_a_server_that_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    hangs = threading.Event()
    stop = threading.Event()

    def meddle(ask: Ask) -> None:
        if ask.start >= 3 * CHUNK:
            stop.set()
            hangs.wait(60)

    class ShortOfTime(NoWaiting):
        def monotonic(self) -> float:
            self.now_s += 10
            return self.now_s

    source = FakeSource({"a": DATA}, {"a": "v"}, meddle)
    with pytest.raises(DownloadError, match="interrupted"):
        pull(source, tmp_path, stop=stop, clock=ShortOfTime())
    source.meddle = lambda ask: None
    pull(source, tmp_path)
    hangs.set()
    assert content(tmp_path, DATA) == DATA
