"""The documented examples of the client run as printed, with our package and a server's address put in."""

from __future__ import annotations

import json
import os
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
from tests.docs.readme import ROOT
from vllm_mxext import client as vllm
from vllm_mxext.bench.server_process import OUR_SERVER, ServerProcess
from vllm_mxext.builtin import adapter_path

pytestmark = pytest.mark.promise("CLIENT-10", "CLIENT-11")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerThread]:
    with ServerThread() as server:
        yield server


def run(server: ServerThread, *codes: str, **names: Any) -> dict[str, Any]:
    scope: dict[str, Any] = {"vllm": vllm, "json": json, **names}
    for code in codes:
        ours = code.replace(printed.IMPORT, "from vllm_mxext.client import VllmClient")
        ours = ours.replace(printed.MODEL, "fake-model").replace("http://localhost:8000", server.url)
        exec(compile(ours, "example", "exec"), scope)
    return scope


def test_the_client_is_made_asked_and_looked_at(server: ServerThread, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = [f"prompt {number}" for number in range(10)]
    scope = run(
        server, printed.CLIENT, printed.PRIORITIES, printed.BATCHING, printed.STATE, prompt="ab", input_prompts=prompts
    )
    scope["client"].close()
    assert [one["text"] for one in scope["results"]] == prompts
    assert scope["result"]["text"] == "ab"
    assert capsys.readouterr().out.splitlines() == [
        "Circuit state: CLOSED",
        "Failure count: 0",
        "Queue enabled: True",
        "Queue length: 0",
        "Active requests: 0",
        "Recent requests: 14",
    ]
    assert scope["metrics"]["requests"]["succeeded"] == 14


def test_endpoints_are_made_and_asked(server: ServerThread) -> None:
    scope = run(server, printed.CLIENT, printed.ENDPOINTS, input_prompt="ab")
    scope["client"].close()
    assert scope["result"]["text"] == "ab"
    assert scope["stats"]["requests"]["total"] == 1
    assert set(scope["all_stats"]) == {"main", scope["endpoint1"], scope["endpoint2"]}


def test_handlers_batches_and_models_are_asked_by_address(server: ServerThread) -> None:
    assert run(server, printed.HANDLERS)["result"]["logprobs"]
    scope = run(server, printed.BATCHES)
    assert (len(scope["results"]), scope["metrics"]["num_failed"]) == (3, 0)
    scope = run(server, printed.MODELS)
    assert scope["info"]["id"] == scope["stats"]["model"] == scope["result"]["model"] == "fake-model"


def test_the_sdk_talks_to_an_adapter(server: ServerThread, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    code = printed.SDK_USAGE.replace("/path/to/math_adapter", str(tmp_path))
    code = code.replace("VllmMxextClient()", f"vllm.VllmMxextClient({server.url!r})")
    run(server, code)["client"].close()
    assert json.loads(capsys.readouterr().out)["choices"][0]["message"]["content"]


@pytest.mark.e2e
def test_every_example_runs_with_the_built_in_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--served-model-name", printed.MODEL, "--enable-lora"]
    environ = {**os.environ, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    with ServerProcess([*OUR_SERVER, *flags], tmp_path / "log", environ=environ) as server:
        server.wait_for()
        scope: dict[str, Any] = {"vllm": vllm, "json": json, "prompt": "What is 12 + 30?", "input_prompt": "Hello"}
        scope |= {"input_prompts": [f"Count to {number}" for number in range(10)]}
        python = "".join([
            printed.CLIENT, printed.PRIORITIES, printed.BATCHING, printed.STATE, printed.HANDLERS, printed.BATCHES,
            printed.MODELS, printed.ENDPOINTS,
        ])  # fmt: skip
        python = python.replace(printed.IMPORT, "from vllm_mxext.client import VllmClient")
        exec(compile(python.replace("http://localhost:8000", server.url), "example", "exec"), scope)
        assert scope["all_stats"][scope["endpoint1"]]["requests"]["succeeded"] == 1
        scope["client"].close()
        capsys.readouterr()

        python = printed.SDK_USAGE.replace("/path/to/math_adapter", str(adapter_path("math_tuned")))
        python = python.replace("VllmMxextClient()", f"vllm.VllmMxextClient({server.url!r})")
        exec(compile(python, "example", "exec"), scope)
        scope["client"].close()
        assert json.loads(capsys.readouterr().out)["choices"][0]["message"]["content"]

        command = (
            printed.RUNNER[-1]
            .replace("http://vllm-server:8000", server.url)
            .replace("generators", f"{ROOT}/generators")
        )
        done = subprocess.run([sys.executable, *shlex.split(command)[1:]], cwd=tmp_path, check=False)
        assert done.returncode == 0
        assert len(list((tmp_path / "collected_results").iterdir())) == 4
        if shutil.which("bash") and shutil.which("curl"):
            commands = "\n".join(["set -e", printed.HEALTH, printed.MODEL_INFORMATION, printed.GENERATE, printed.CHAT])
            commands = commands.replace("http://localhost:8000", server.url)
            output = subprocess.run(["bash", "-c", commands], capture_output=True, text=True, check=True).stdout
            assert '"text":' in output
            assert '"chat.completion"' in output


def test_the_package_exports_what_it_names() -> None:
    assert all(getattr(vllm, name).__name__ == name for name in vllm.__all__)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = vllm.nothing_of_the_kind
