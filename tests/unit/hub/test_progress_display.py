"""Progress is a bar on a terminal, a line every ten seconds in a log, and JSON for programs."""

from __future__ import annotations

import io
import json
import logging

import pytest

from vllm_mxext.hub.progress import Phase, Progress
from vllm_mxext.hub.progress_display import display, line

pytestmark = pytest.mark.promise("HUB-TRANSFER-6")

MOMENT = Progress("org/model", Phase.DOWNLOADING, 2**30, 4 * 2**30, 1, 3, 2**26, 3725.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_has_share_bytes_files_rate_and_time_left() -> None:
    assert line(MOMENT) == ("downloading org/model: 25%, 1.00 GiB of 4.00 GiB, 1 of 3 files, 64.00 MiB/s, 1:02:05 left")
    assert line(Progress("m", Phase.LISTING, detail="hf://org/m")) == "listing m (hf://org/m)"


def test_a_log_gets_a_line_per_phase_and_every_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    stream = io.StringIO()
    logging.getLogger("vllm_mxext").propagate = True
    with caplog.at_level(logging.INFO), display(stream, monotonic=lambda: now) as listener:
        for second in range(25):
            now = float(second)
            listener(MOMENT)
        listener(Progress("org/model", Phase.PUBLISHING))
    assert [record.getMessage().split()[0] for record in caplog.records] == [*["downloading"] * 3, "publishing"]
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()
    with display(stream) as listener:
        listener(MOMENT)
    assert "org/model:  25%" in stream.getvalue()
    assert "1/3 files" in stream.getvalue()


def test_programs_get_an_object_per_event() -> None:
    stream = Terminal()
    with display(stream, as_json=True) as listener:
        listener(MOMENT)
        listener(Progress("org/model", Phase.DONE))
    first, last = map(json.loads, stream.getvalue().splitlines())
    assert (first["phase"], first["fraction"], first["done_bytes"], first["eta_s"]) == (
        "downloading",
        0.25,
        2**30,
        3725,
    )
    assert (last["phase"], last["fraction"], last["eta_s"]) == ("done", 1.0, None)
