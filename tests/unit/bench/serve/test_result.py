"""Results: JSON both ways, and refusals of what is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm_mxext.bench.serve.result import ClientLag, MetricsSample, RequestRecord, RunResult, Stage
from vllm_mxext.errors import ConfigError

RESULT = RunResult(
    started_at="2026-01-02T03:04:05+00:00",
    plan={"server": {"model": "m"}},
    environment={"python": "3"},
    stages=(Stage("1 at a time", "A", 1, None, 0.0, 0.5, 2.0),),
    records=(
        RequestRecord("req_0", 0, True, None, 0.0, 0.5),
        RequestRecord(
            "req_1", 0, False, 0.5, 0.6, 2.0, 0.65, (0.8, 0.9), (0.7,), (1, 2), 4, None, 3, "usage", "stop", status=200
        ),
    ),
    lag=(ClientLag(0.0, 0.001, 0.002, None, None, 0.5, 10.0),),
    metrics=(MetricsSample(1.0, "A", {'a{b="c"}': 1.0}),),
    notes=("One.",),
)


@pytest.mark.promise("PERF-2")
def test_a_result_is_the_same_after_json() -> None:
    assert RunResult.from_dict(json.loads(RESULT.to_json())) == RESULT


def test_fields_of_a_later_version_are_ignored() -> None:
    data = RESULT.as_dict()
    data["records"][0]["colour"] = "red"
    assert RunResult.from_dict(data) == RESULT


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "is not the result"),
        ('{"schema_version": 99}', "later version"),
        ('{"schema_version": 1}', "not complete"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        RunResult.read(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        RunResult.read(tmp_path / "none.json")


def test_warm_up_is_in_no_stage_s_records() -> None:
    assert [record.request_id for record in RESULT.of_stage(0)] == ["req_1"]


def test_lag_is_absent_without_a_schedule() -> None:
    assert RESULT.records[0].send_lag_s is None
    assert RESULT.records[1].send_lag_s == pytest.approx(0.1)
