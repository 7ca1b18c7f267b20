"""Every example of the README runs as printed, against a real server with the built-in model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.readme import ENGLISH, ROOT, CodeBlock, code_blocks
from vllm_mxext.bench.server_process import OUR_SERVER, ServerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.promise("DOCS-1")]

PRINTED_URL = "http://127.0.0.1:8000"
MXEXT = [sys.executable, "-c", "import sys; from vllm_mxext.cli.main import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(OUR_SERVER, tmp_path_factory.mktemp("server") / "log") as process:
        process.wait_for()
        yield process


def blocks_with(text: str) -> list[CodeBlock]:
    found = [block for block in code_blocks(ENGLISH) if text in block.text]
    assert found
    return found


def run(command: list[str], folder: Path) -> str:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    result = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_example_gets_the_sum(server: ServerProcess, tmp_path: Path) -> None:
    for block in blocks_with("curl "):
        output = run(["bash", "-c", block.text.replace(PRINTED_URL, server.url)], tmp_path)
        assert "42" in json.loads(output)["choices"][0]["message"]["content"]


def test_the_openai_example_prints_the_answer(server: ServerProcess, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    for block in blocks_with("from openai import"):
        assert "Paris" in run([sys.executable, "-c", block.text.replace(PRINTED_URL, server.url)], tmp_path)


def test_the_client_example_prints_the_sum_and_a_time(server: ServerProcess, tmp_path: Path) -> None:
    for block in blocks_with("from vllm_mxext.client import"):
        *_, text, seconds = run([sys.executable, "-c", block.text.replace(PRINTED_URL, server.url)], tmp_path).split()
        assert "42" in text
        assert float(seconds) > 0


def test_the_library_example_prints_both_answers(tmp_path: Path) -> None:
    for block in blocks_with("from vllm_mxext import LLM"):
        output = run([sys.executable, "-c", block.text], tmp_path)
        assert "42" in output
        assert "Paris" in output


@pytest.mark.promise("CLI-1")
def test_the_complete_command_continues_the_text(server: ServerProcess, tmp_path: Path) -> None:
    assert "42" in run([*MXEXT, "complete", "12 + 30 =", "--url", server.url, "--temperature", "0"], tmp_path)


@pytest.mark.promise("CLI-1")
@pytest.mark.parametrize("benchmark", ["latency", "throughput"])
def test_benchmarks_end_with_one_line_of_json(benchmark: str, tmp_path: Path) -> None:
    output = run([*MXEXT, "bench", benchmark, "--repeats", "1", "--workload", "3x(8->4)"], tmp_path)
    report = json.loads(output.splitlines()[-1])
    assert report["benchmark"] == benchmark
    assert report["results"]["output_tokens_per_s"] > 0


def test_the_performance_test_writes_its_report(server: ServerProcess, tmp_path: Path) -> None:
    for block in blocks_with("performance_tester"):
        program, *words = block.text.replace(PRINTED_URL, server.url).split()
        assert program == "python"
        command = [sys.executable, *words, "--log-dir", str(tmp_path)]
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(tmp_path)}
        result = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        assert result.returncode == 0 or "the client" in result.stdout, result.stderr
        assert "Overall Throughput: " in result.stdout
        assert "<svg" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.promise("CLI-3")
def test_the_console_command_and_the_module_are_the_same_server(tmp_path: Path) -> None:
    help_of_module = run([*OUR_SERVER, "--help"], tmp_path)
    help_of_command = run([*MXEXT, "serve", "--help"], tmp_path)
    assert help_of_module.partition("[MODEL]")[2] == help_of_command.partition("[MODEL]")[2] != ""
