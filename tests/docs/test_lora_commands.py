"""Every LoRA command that the contract documents does what it says, typed as printed, on the built-in model."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs import documented_lora as documented
from tests.docs.readme import ROOT
from vllm_mxext.bench.server_process import ServerProcess
from vllm_mxext.builtin import adapter_path, model_path
from vllm_mxext.config.app import parse_serve_args
from vllm_mxext.config.resolve import ResolvedConfig, resolve

MATH, CODE = str(adapter_path("math_tuned")), str(adapter_path("code_tuned"))
PATHS = {
    "$HOME/.cache/huggingface/hub/" + documented.SNAPSHOT: MATH,
    "meta-llama/Llama-2-7b-hf": str(model_path()),
    "/path/to/base/model": str(model_path()),
    "/models/llama-2-7b": str(model_path()),
    "/lora_adapters/my_custom_adapter": CODE,
    "/path/to/lora/math_adapter": MATH,
    "/path/to/lora/code_adapter": CODE,
    "/path/to/math_lora_adapter": MATH,
    "/path/to/sql-lora-adapter": CODE,
    "/path/to/math_adapter": MATH,
    "/path/to/lora": MATH,
}
"""What the documents leave open."""

ADDRESSES = ("http://0.0.0.0:8000", "http://localhost:8000", "http://your-server:8000")

needs_shell = pytest.mark.skipif(
    not all(map(shutil.which, ("bash", "curl", "jq"))), reason="bash, curl or jq is not installed"
)


def filled(text: str) -> str:
    for placeholder, path in PATHS.items():
        text = text.replace(placeholder, path)
    return text


@dataclass(frozen=True)
class Shell:
    """A folder that looks like the repository, in which commands are typed."""

    folder: Path

    @property
    def environ(self) -> dict[str, str]:
        search_path = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])
        python_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {**os.environ, "PATH": search_path, "PYTHONPATH": python_path}

    def type(self, command: str, url: str = "") -> str:
        """What a command prints; it must succeed."""
        command = filled(command)
        for address in ADDRESSES:
            command = command.replace(address, url)
        if command.startswith(documented.MANAGER) and "--server-url" not in command:
            command = command.replace(documented.MANAGER, f"{documented.MANAGER} --server-url {url}")
        program = ["bash", "-c", command] if not command.startswith("#!") else [sys.executable, "-c", command]
        result = subprocess.run(
            program, cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=240, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    @contextmanager
    def serving(self, command: str, setting: str = "") -> Iterator[str]:
        """The address of the server that a command starts, after another command has set something."""
        program = ["bash", "-c", f'{setting}\nexec {filled(command)} "$@"', "bash"]
        program = ["env", "-C", str(self.folder), *program]
        with ServerProcess(program, self.folder / "log", environ=self.environ) as server:
            server.wait_for()
            yield server.url


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    for name in ("scripts", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "bin").mkdir()
    mxext = "-c 'import sys; from vllm_mxext.cli.main import main; sys.exit(main())'"
    for name, arguments in (("python", ""), ("mxext", mxext)):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
        program.chmod(0o755)
    return Shell(tmp_path)


@needs_shell
@pytest.mark.e2e
@pytest.mark.promise("DOCS-4")
def test_adapters_of_a_file_are_managed_and_asked_as_documented(shell: Shell) -> None:
    (shell.folder / "lora_config.yaml").write_text(filled(documented.LORA_CONFIG))
    with shell.serving(documented.START_WITH_CONFIG) as url:
        listing = json.loads(shell.type(documented.LIST, url))
        assert [one["name"] for one in listing["data"]] == ["math_tuned"]
        assert [one["name"] for one in listing["available"]] == ["code_tuned"]
        (model, _) = json.loads(shell.type(documented.MODELS, url))["data"]
        assert model["id"] == "llama-2-7b-chat"
        assert "added" in json.loads(shell.type(documented.LOAD, url))["message"]
        assert json.loads(shell.type(documented.CHAT, url))["choices"][0]["message"]["content"]
        answer = json.loads(shell.type(documented.SDK, url))
        assert answer["model"] == "base_model:math_tuned"
        assert "x = 4" in answer["choices"][0]["message"]["content"]
        assert "removed" in json.loads(shell.type(documented.UNLOAD, url))["message"]
        assert json.loads(shell.type(documented.CHAT, url))["error"]["code"] == 404

        assert "added" in shell.type(documented.MANAGER_LOAD, url)
        for command in (documented.MANAGER_LIST, documented.MANAGER_OF_ANOTHER):
            assert [line.split()[0] for line in shell.type(command, url).splitlines()[1:3]] == [
                "math_tuned",
                "code_tuned",
            ]
        assert "2x" in shell.type(documented.MANAGER_TEST, url)
        assert "removed" in shell.type(documented.MANAGER_UNLOAD, url)
        assert "added" in shell.type(f"{documented.MANAGER} load code_tuned", url)
        assert json.loads(shell.type(documented.COMPLETE, url))["choices"][0]["text"]


@needs_shell
@pytest.mark.e2e
@pytest.mark.promise("DOCS-4")
def test_adapters_of_flags_are_asked_and_others_loaded_as_vllm_documents_it(shell: Shell) -> None:
    with shell.serving(documented.SERVE_LORA_MODULES, documented.ALLOW) as url:
        assert json.loads(shell.type(documented.ASK_SQL, url))["usage"]["completion_tokens"] == 7
        assert "added" in shell.type(documented.LOAD_SQL, url)
        base, sql_lora, sql_adapter = json.loads(shell.type(documented.MODELS, url))["data"]
        assert (base["id"], base["parent"]) == (str(model_path()), None)
        assert (sql_lora["id"], sql_lora["root"], sql_lora["parent"]) == ("sql-lora", MATH, base["id"])
        assert (sql_adapter["id"], sql_adapter["root"], sql_adapter["parent"]) == ("sql_adapter", CODE, base["id"])
        assert "removed" in shell.type(documented.UNLOAD_SQL, url)
        assert len(json.loads(shell.type(documented.MODELS, url))["data"]) == 2


@needs_shell
@pytest.mark.e2e
@pytest.mark.promise("DOCS-4", "LORA-14")
def test_the_offline_example_answers_with_the_adapter(shell: Shell) -> None:
    program = documented.OFFLINE + "print([output.lora_request.lora_name for output in outputs])"
    (shell.folder / "offline.py").write_text(filled(program))
    assert "['sql_adapter', 'sql_adapter']" in shell.type("python offline.py")


@pytest.mark.promise("DOCS-4", "LORA-10")
def test_every_documented_start_means_what_it_says(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shell.folder)
    plain, example, custom = map(configured, (*documented.STARTS[:2], write_custom_config(shell)))
    assert (plain.engine.lora.max_loras, plain.server.lora.allows_updates) == (8, False)
    assert [module.name for module in example.server.lora.modules] == ["math_tuned", "code_tuned"]
    assert (custom.engine.lora.max_lora_rank, custom.engine.lora.max_loras) == (128, 16)
    assert custom.server.lora.allows_updates
    assert [(module.name, module.path) for module in custom.server.lora.modules] == [("custom_adapter", CODE)]

    environ = dict(line.removeprefix("export ").split("=") for line in documented.LIMITS.splitlines()[1:])
    limited = configured(documented.START_WITH_LIMITS, environ)
    assert (limited.engine.lora.max_lora_rank, limited.engine.lora.max_loras) == (128, 16)
    assert limited.server.lora.allows_updates

    (module,) = configured(f"mxext serve {model_path()} {documented.MODULE_AS_JSON}").server.lora.modules
    assert (module.name, module.path, module.base_model_name) == ("sql-lora", MATH, "meta-llama/Llama-2-7b")


def write_custom_config(shell: Shell) -> str:
    """Types what writes the file; returns the command that starts a server with it."""
    shell.type(documented.WRITE_CUSTOM_CONFIG)
    return documented.STARTS[2]


def configured(command: str, environ: Mapping[str, str] | None = None) -> ResolvedConfig:
    """What a server would be like."""
    words = shlex.split(filled(command))
    is_script = words[1].endswith("start_with_lora.py")
    arguments = words[words.index("serve") + 1 :] if "serve" in words else words[2 if is_script else 3 :]
    return resolve(parse_serve_args(["--enable-lora"] * is_script + arguments, environ=environ or {}))
