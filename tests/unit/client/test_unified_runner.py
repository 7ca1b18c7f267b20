"""The unified test runner: files of the documented names, and exit codes that tell the truth."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client import unified
from tests.client.checks import Target
from tests.client.standard_checks import NOBODY
from tests.client.unified import echo_target, main

pytestmark = pytest.mark.promise("CLIENT-18")

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "collected_results"


def content(folder: Path, pattern: str) -> dict:
    (path,) = folder.glob(pattern)
    return json.loads(path.read_text())


def test_all_suites_pass_against_a_server_that_answers(folder: Path) -> None:
    with echo_target(Target("")) as target:
        assert main(["--all", "--api-url", target.url, "--model", "fake-model", "--timeout", "60"], {}) == 0
    assert content(folder, "vllm_test_results.json")["counts"]["failed"] == 0
    figures = {one["name"]: one for one in content(folder, "vllm_performance_*.json")["checks"]}
    assert figures["batch_inference"]["figures"]["batch_speedup"] > 0
    assert figures["precision_modes"]["status"] == "skipped"
    assert content(folder, "vllm_connection_*.json")["status"] == "passed"
    summary = content(folder, "vllm_summary_*.json")
    assert {name: one["status"] for name, one in summary["suites"].items()} == {
        "standard": "passed",
        "performance": "passed",
        "real": "passed",
    }


@pytest.mark.parametrize("flag", ["--real", "--performance"])
def test_a_server_that_is_not_there_fails_the_run(folder: Path, flag: str) -> None:
    assert main([flag], {"VLLM_API_URL": NOBODY}) == 1
    summary = content(folder, "vllm_summary_*.json")
    assert summary["api_url"] == NOBODY
    assert [one["status"] for one in summary["suites"].values()] == ["failed"]


def test_a_model_that_is_not_served_fails_the_run(folder: Path) -> None:
    with echo_target(Target("")) as target:
        assert main(["--real", "--model", "nope", "--api-url", target.url], {}) == 1
    problems = [one["status"] for one in content(folder, "vllm_connection_*.json")["checks"]]
    assert problems == ["passed", "failed", "failed"]


def test_suites_can_be_left_out_by_variables(folder: Path) -> None:
    environ = {"SKIP_PERFORMANCE_TESTS": "true", "SKIP_REAL_TESTS": "true", "VLLM_API_URL": NOBODY}
    assert main(["--performance", "--real"], environ) == 0
    assert [path.name[:13] for path in folder.iterdir()] == ["vllm_summary_"]


@pytest.mark.parametrize(("arguments", "environ"), [([], {}), (["--fast"], {}), (["--real"], {"VLLM_TIMEOUT": "x"})])
def test_wrong_usage_ends_with_2(arguments: list[str], environ: dict[str, str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments, environ)
    assert caught.value.code == 2


def test_an_interrupted_run_ends_with_130(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(unified, "run_checks", press)
    assert main(["--real"], {"VLLM_API_URL": NOBODY}) == unified.INTERRUPTED


@pytest.mark.parametrize("path", ["generators/models/test_vllm_unified.py", "tests/client/test_vllm_unified.py"])
def test_it_runs_at_both_documented_paths(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIP_REAL_TESTS", "true")
    result = subprocess.run(
        [sys.executable, str(ROOT / path), "--real"], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "SKIP_REAL_TESTS" in result.stdout
