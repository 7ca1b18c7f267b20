"""Processes that download are killed at random bytes, and several fetch one file at once, with and without locks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e.hub_kills import CHUNK, SIZE, TUNING, kill_often, pull_together

pytestmark = [pytest.mark.e2e, pytest.mark.promise("HUB-TRANSFER-1", "HUB-TRANSFER-3")]

TIMES = 200 if os.environ.get("VLLM_MXEXT_TEST_LONG") == "1" else 6


@pytest.mark.timeout(1200)
def test_a_download_that_is_killed_at_a_random_byte_goes_on_with_all_but_one_chunk_per_connection() -> None:
    figures = kill_often(TIMES)
    assert figures["killed"] >= TIMES * 0.9
    assert figures["most_wasted_bytes"] <= 4 * CHUNK


def test_eight_processes_that_want_one_file_fetch_it_once_if_locks_work(tmp_path: Path) -> None:
    figures = pull_together(8, "work", tmp_path / "one")
    lost = figures["killed"] * 2 * TUNING.range_chunks * CHUNK  # what the connections of the killed had asked for
    assert SIZE * figures["downloads"] <= SIZE + lost + CHUNK
    assert figures["left_partials"] == 0


@pytest.mark.parametrize("locks", ["raise", "lie"])
def test_eight_processes_that_want_one_file_do_each_other_no_harm_if_locks_do_not_work(
    tmp_path: Path, locks: str
) -> None:
    assert pull_together(8, locks, tmp_path / "one")["downloads"] <= 8.5
