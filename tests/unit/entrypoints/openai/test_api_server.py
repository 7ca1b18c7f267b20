"""The server as a program: exit codes, last lines, and what happens before anything is loaded."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_mxext.engine.backends.fake import FakeEngineClient
from vllm_mxext.entrypoints.openai import api_server, serving

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 261,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "dtype": "bfloat16",
}


class SelfEndingEngine(FakeEngineClient):
    """Sends this process the signal that ends it, as soon as it is started."""

    async def start(self) -> None:
        await super().start()
        os.kill(os.getpid(), signal.SIGTERM)


class BrokenEngine(FakeEngineClient):
    """Cannot be started."""

    async def start(self) -> None:
        await super().start()
        self.die("The shard model-2.safetensors is missing; download it again.")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


@pytest.fixture
def created(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Arguments of every engine client that was made."""
    monkeypatch.setenv("VLLM_MXEXT_CONFIGURE_LOGGING", "0")
    return []


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, created: list[Any], checkpoint: Path):
    """Runs the program with a given kind of engine."""

    def run(engine: type[FakeEngineClient], *argv: str) -> int:
        def create(config: Any, frontend: Any, *, recorder: Any, environ: Any, first_core: Any) -> FakeEngineClient:
            assert first_core == "launched"
            created.append((config, frontend, recorder, environ))
            return engine(recorder=recorder)

        monkeypatch.setattr(api_server, "launch_core", lambda *_arguments: "launched")
        monkeypatch.setattr(serving, "create_engine_client", create)
        return api_server.main(["--model", str(checkpoint), "--port", "0", *argv])

    return run


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.promise("OPS-5")
def test_a_signal_ends_the_program_with_status_0(main, created):
    assert main(SelfEndingEngine) == 0
    assert len(created) == 1


@pytest.mark.promise("ENG-6")
def test_a_failed_start_ends_with_status_1_and_the_root_cause_as_last_line(main, capsys):
    assert main(BrokenEngine) == 1
    assert last_line(capsys).endswith(": The shard model-2.safetensors is missing; download it again.")


def test_the_engine_process_logs_as_the_configuration_file_says(main, created, tmp_path, monkeypatch):
    monkeypatch.delenv("VLLM_MXEXT_CONFIGURE_LOGGING")
    path = tmp_path / "logging.json"
    path.write_text('{"version": 1, "incremental": true}')
    assert main(SelfEndingEngine, "--log-config-file", str(path)) == 0
    [(*_, environ)] = created
    assert environ == {"VLLM_MXEXT_LOGGING_CONFIG_PATH": str(path)}


def test_a_port_in_use_ends_with_status_2_before_any_engine_is_made(main, created, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert main(SelfEndingEngine, "--port", str(other.getsockname()[1])) == 2

    assert "is in use by another process" in last_line(capsys)
    assert created == []


def test_a_bad_certificate_ends_with_status_2_before_any_engine_is_made(main, created, capsys, checkpoint):
    assert main(SelfEndingEngine, "--ssl-certfile", str(checkpoint / "config.json")) == 2
    assert "cannot be used" in last_line(capsys)
    assert created == []


@pytest.mark.parametrize("argv", [["--modle", "x"], ["--port", "many"]])
def test_wrong_flags_end_with_status_2(main, created, capsys, argv):
    assert main(SelfEndingEngine, *argv) == 2
    assert argv[0] in last_line(capsys)
    assert created == []


@pytest.mark.promise("CLI-3")
def test_help_names_the_program(capsys):
    with pytest.raises(SystemExit) as ending:
        api_server.main(["--help"])

    assert ending.value.code == 0
    assert "vllm_mxext.entrypoints.openai.api_server" in capsys.readouterr().out


def test_the_engine_feeds_the_metrics_that_the_server_shows(main, created):
    main(SelfEndingEngine, "--served-model-name", "tiny")

    [(config, _, recorder, _)] = created
    assert config.model.served_model_names == ("tiny",)
    assert b'model_name="tiny"' in recorder.render()[0]


@pytest.mark.promise("CLI-2")
def test_the_front_process_does_not_import_torch():
    program = "import sys, vllm_mxext.entrypoints.openai.api_server; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
