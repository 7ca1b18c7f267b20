"""Every command of the registry that the contract documents does what it says, typed as printed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs import documented_servers as documented
from tests.docs.readme import ENGLISH, ROOT, code_blocks
from tests.docs.shell import lay_out, type_in
from vllm_mxext.bench.server_process import reserved_port

NAMES = "gpt2 vllm-gpt2 vllm-llama my-vllm-model"
"""What the documents call the models of their servers."""

PORTS = re.compile(r"(?<=localhost:)8000|(?<=--port )80\d\d")

needs_shell = pytest.mark.skipif(not all(map(shutil.which, ("bash", "curl"))), reason="bash or curl is not installed")


@dataclass(frozen=True)
class Shell:
    """A folder that looks like the repository, in which commands are typed by a user with folders of their own."""

    folder: Path
    port: int
    environ: dict[str, str]

    def type(self, command: str, code: int = 0) -> str:
        """What a command prints; it must end with the code. Its ports become that of the server under test."""
        command = PORTS.sub(str(self.port), command)
        if command.startswith("./examples") and "--port" not in command:
            command += f" --port {self.port}"
        result = type_in(self.folder, command, self.environ)
        assert result.returncode == code, result.stdout + result.stderr
        return result.stdout + result.stderr


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with reserved_port() as port:
        shell = Shell(tmp_path, port, lay_out(tmp_path, "examples", "main.py"))
        yield shell
        for name in shell.type("python main.py server list --quiet").split():
            shell.type(f"python main.py server stop {name}")


@needs_shell
@pytest.mark.promise("DOCS-5")
def test_servers_of_another_backend_are_registered_and_say_what_is_missing(shell: Shell) -> None:
    assert "Registered 'vllm-gpt2'" in shell.type(documented.ADD_GPT2)
    assert "Registered 'vllm-llama'" in shell.type(documented.ADD_LLAMA)
    for command in (documented.START_GPT2, documented.START_LLAMA):
        assert "vllm" in shell.type(command, code=5)
    assert "which model" in shell.type(documented.LESS_MEMORY, code=2)
    shell.type("python main.py server add model --model-path gpt2 --backend vllm")
    assert "Changed 'model'" in shell.type(documented.LESS_MEMORY)
    listing = shell.type(documented.LIST)
    assert [line.split()[0] for line in listing.splitlines()[1:4]] == ["model", "vllm-gpt2", "vllm-llama"]
    shown = json.loads(shell.type("python main.py server export"))["servers"]
    assert shown["model"]["gpu_memory_utilization"] == 0.7
    assert shown["vllm-llama"] == {
        "endpoint_url": "self-hosted", "backend": "vllm", "model_path": "meta-llama/Llama-2-7b-chat-hf",
        "tensor_parallel": 2, "max_model_len": 4096, "host": "127.0.0.1",
    }  # fmt: skip
    assert "No server answers" in shell.type(documented.TESTS[0], code=1)


@needs_shell
@pytest.mark.e2e
@pytest.mark.promise("DOCS-5", "REGISTRY-7")
def test_a_server_is_registered_started_and_tested_as_documented(shell: Shell) -> None:
    add = documented.ADD_GPT2.replace('"gpt2"', "builtin").replace("--backend vllm", "--backend native").strip()
    shell.type(f"{add} --port {shell.port} --extra-args --served-model-name {NAMES}")
    assert "it was ready after" in shell.type(documented.START_GPT2)
    assert "running" in shell.type(documented.LIST)
    assert json.loads(shell.type(f"{documented.HEALTH} -s"))["status"] == "ready"
    for command in documented.TESTS:
        printed = shell.type(command)
        layout = documented.STREAMING_OUTPUT
        if "streaming" not in command:
            assert re.search(documented.NON_STREAMING_OUTPUT, printed), printed
        assert re.search(layout, printed), printed
    assert json.loads(shell.type(f"{documented.CHAT} -s"))["usage"]["completion_tokens"] > 0
    assert "data: [DONE]" in shell.type(f"{documented.CHAT_STREAM} -s")
    asked = f"{documented.REQUESTS}\nchat_with_vllm('Hello!')\nchat_with_vllm('Hello!', stream=False)\n"
    (shell.folder / "ask.py").write_text(asked.replace("localhost:8000", f"localhost:{shell.port}"))
    assert "'finish_reason': 'stop'" in shell.type("python ask.py")
    assert "does not serve 'other'" in shell.type("./examples/test_vllm.py --model other", code=1)
    assert "Stopped" in shell.type("python main.py server stop vllm-gpt2")


@needs_shell
@pytest.mark.e2e
@pytest.mark.promise("DOCS-5")
def test_the_commands_of_the_page_and_of_the_readme_run_in_order(shell: Shell) -> None:
    page = [block.text for block in code_blocks(ROOT / "docs" / "servers.md")]
    life, tests, completion = page
    (readme,) = [block.text for block in code_blocks(ENGLISH) if "server add" in block.text]
    assert set(readme.splitlines()) <= set(life.splitlines())
    add, start, ps, logs, stop = life.splitlines()
    assert add.endswith(" --model-path builtin")
    shell.type(f"{add} --port {shell.port}")
    shell.type(start)
    assert "demo  running" in shell.type(ps)
    assert "Serving demo, mx-tiny, builtin on " in shell.type(logs)
    for command in tests.splitlines():
        assert "checks passed" in shell.type(command)
    assert "Stopped 'demo'." in shell.type(stop)
    assert "complete -" in shell.type(f"{completion.strip()} && complete -p mxext")
