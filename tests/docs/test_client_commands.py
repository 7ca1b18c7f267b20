"""The client's test runner and the requests by hand that the contract documents, typed as printed."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.server_thread import ServerThread
from tests.docs import documented_client as printed
from tests.docs.readme import ROOT, code_blocks

pytestmark = pytest.mark.promise("CLIENT-18")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerThread]:
    with ServerThread() as server:
        yield server


@pytest.mark.parametrize("command", printed.RUNNER)
def test_the_runner_passes(server: ServerThread, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = command.replace("http://vllm-server:8000", server.url).replace(printed.MODEL, "fake-model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLLM_API_URL", server.url)
    python, path, *flags = shlex.split(command)
    assert python == "python"
    monkeypatch.setattr(sys, "argv", [path, *flags])
    with pytest.raises(SystemExit) as ending:
        runpy.run_path(str(ROOT / path), run_name="__main__")
    assert ending.value.code == 0
    suites = ["standard", "performance", "real"] if "--all" in flags else [flags[0][2:]]
    (summary,) = tmp_path.glob("collected_results/vllm_summary_*.json")
    files = {name: one["file"] for name, one in json.loads(summary.read_text())["suites"].items()}
    names = {
        "standard": "vllm_test_results",
        "performance": r"vllm_performance_\d+_\d+",
        "real": r"vllm_connection_\d+_\d+",
    }
    assert list(files) == suites
    assert all(re.fullmatch(f"collected_results/{names[one]}.json", files[one]) for one in suites)


def test_the_page_types_the_same_runner() -> None:
    (block,) = [one.text for one in code_blocks(ROOT / "docs/client.md") if one.language == "bash"]
    python, path, *flags = shlex.split(block)
    assert (python, flags) == ("python", ["--all", "--api-url", "http://127.0.0.1:8000"])
    assert (ROOT / path).read_text(encoding="utf-8").endswith("    sys.exit(main())\n")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.promise("API-13")
def test_the_server_is_asked_by_hand(server: ServerThread) -> None:
    assert curl(server, printed.HEALTH)["status"] == "ready"
    assert curl(server, printed.MODEL_INFORMATION)["id"] == "fake-model"
    generated = curl(server, printed.GENERATE)
    assert generated["text"] == "Hello, world!"
    assert set(generated["metadata"]) >= {"finish_reason", "model", "usage"}
    assert curl(server, printed.CHAT)["object"] == "chat.completion"
    assert curl(server, printed.ADAPTERS)["object"] == "list"


def curl(server: ServerThread, command: str) -> dict[str, Any]:
    command = re.sub(r"http://(localhost|0\.0\.0\.0):8000", server.url, command).replace(printed.MODEL, "fake-model")
    done = subprocess.run(["bash", "-c", f"{command} -s"], capture_output=True, text=True, timeout=60, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.promise("CLIENT-10")
def test_the_class_that_is_printed_talks_to_an_adapter(
    server: ServerThread, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("requests")
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    code = (printed.SDK_CLASS + printed.SDK_USAGE).replace("/path/to/math_adapter", str(tmp_path))
    exec(compile(code.replace("http://0.0.0.0:8000", server.url), "printed", "exec"), {})
    assert json.loads(capsys.readouterr().out)["choices"][0]["message"]["content"]
