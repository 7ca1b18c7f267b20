"""The unified test runner: files of the documented names, and exit codes that tell the truth."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from tests.client import unified
from tests.client.checks import Target
from tests.client.standard_checks import NOBODY
from tests.client.unified import SUITES, echo_target, main

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


class Wrong(BaseHTTPRequestHandler):
    """Answers every question, wrongly."""

    answer: ClassVar[dict[str, object]] = {}

    def log_message(self, *words: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        self.send({"data": [{"id": "m"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send(self.answer)

    def send(self, content: dict[str, object]) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({}, "no choices"),
        ({"model": "m", "choices": [{"text": "a"}]}, "does not say how many tokens"),
        ({"model": "m", "choices": [{"text": ""}], "usage": {"completion_tokens": 0}}, "no tokens"),
        ({"model": "other", "choices": [{"text": "a"}], "usage": {"completion_tokens": 1}}, "Another model"),
        ({"model": "m", "choices": [{"text": "a"}], "usage": {"completion_tokens": 1}}, "stream of events"),
    ],
)
def test_a_server_that_answers_wrongly_fails_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, answer: dict[str, object], problem: str
) -> None:
    monkeypatch.setattr(Wrong, "answer", answer)
    with ThreadingHTTPServer(("127.0.0.1", 0), Wrong) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        assert main(["--real", "--model", "m", "--api-url", f"http://127.0.0.1:{server.server_port}"], {}) == 1
        server.shutdown()
    checks = content(folder, "vllm_connection_*.json")["checks"]
    assert [one["status"] for one in checks] == ["passed", "passed", "failed"]
    assert re.search(problem, checks[-1]["problem"])


def test_a_server_that_dies_in_the_middle_fails_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = echo_target(Target(""))

    def dies(_: Target) -> dict[str, object]:
        running.__exit__(None, None, None)
        return {}

    suites = [replace(one, checks=(one.checks[0], dies, *one.checks[1:])) for one in SUITES]
    monkeypatch.setattr(unified, "SUITES", suites)
    assert main(["--real", "--api-url", running.__enter__().url], {}) == 1
    checks = content(folder, "vllm_connection_*.json")["checks"]
    assert [one["status"] for one in checks] == ["passed", "passed", "failed", "failed"]
    assert all("ConnectionFailedError" in one["problem"] for one in checks[2:])


def test_what_was_found_before_an_interrupt_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Target) -> dict[str, object]:
        raise KeyboardInterrupt

    suites = [replace(one, checks=(*one.checks[:1], interrupted, *one.checks[1:])) for one in SUITES]
    monkeypatch.setattr(unified, "SUITES", suites)
    with echo_target(Target("")) as target:
        assert main(["--real", "--standard", "--api-url", target.url], {}) == 130
    assert content(folder, "vllm_test_results.json")["counts"] == {
        "passed": 1,
        "failed": 0,
        "skipped": 0,
        "interrupted": 1,
    }
    assert list(content(folder, "vllm_summary_*.json")["suites"]) == ["standard"]


def test_results_that_cannot_be_written_fail_the_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.write_text("no folder")
    assert main(["--real"], {"SKIP_REAL_TESTS": "true"}) == 1
    assert "cannot be written" in capsys.readouterr().out


def test_suites_can_be_left_out_by_variables(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environ = {"SKIP_PERFORMANCE_TESTS": "true", "SKIP_REAL_TESTS": "true", "VLLM_API_URL": NOBODY}
    assert main(["--performance", "--real"], environ) == 0
    assert "Summary: skipped: performance, real (" in capsys.readouterr().out
    assert [path.name[:13] for path in folder.iterdir()] == ["vllm_summary_"]


@pytest.mark.parametrize(("arguments", "environ"), [([], {}), (["--fast"], {}), (["--real"], {"VLLM_TIMEOUT": "x"})])
def test_wrong_usage_ends_with_2(arguments: list[str], environ: dict[str, str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments, environ)
    assert caught.value.code == 2


@pytest.mark.parametrize("path", ["generators/models/test_vllm_unified.py", "tests/client/test_vllm_unified.py"])
def test_it_runs_at_both_documented_paths(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIP_REAL_TESTS", "true")
    result = subprocess.run(
        [sys.executable, str(ROOT / path), "--real"], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "SKIP_REAL_TESTS" in result.stdout
