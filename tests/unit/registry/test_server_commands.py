"""`mxext server` registers, starts, watches and stops servers, and its exit codes say how that went."""

from __future__ import annotations

import io
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from tests.docs.readme import ENGLISH, code_blocks
from tests.unit.registry.conftest import User
from vllm_mxext.cli.main import main
from vllm_mxext.cli.server_commands.waiting import Waiting
from vllm_mxext.registry.probe import Probe
from vllm_mxext.registry.processes import identify, wait_for_end
from vllm_mxext.registry.runs import Run, read_run
from vllm_mxext.registry.starting import Progress


def documented_keys() -> list[str]:
    """What docs/servers.md says that a server has with `--json`."""
    text = (ENGLISH.parent / "docs" / "servers.md").read_text(encoding="utf-8")
    sentence = text.partition("- `status --json`")[2].partition(" has ")[2].partition("\n- ")[0]
    return re.findall(r"`(\w+)`", sentence)


@pytest.mark.promise("REGISTRY-2")
def test_a_server_is_started_watched_and_stopped(user: User) -> None:
    user.types("add", "one", "--port", user.port())
    assert "stopped" in user.types("status", "one", code=3)
    started = user.asks("start", "one")
    assert started["ready"]
    assert user.asks("start", "one")["was_running"]
    facts = user.asks("status", "one")
    assert (facts["state"], facts["models"], facts["requests_running"]) == ("running", ["fake-model"], 3)
    assert facts["memory_bytes"] > 0
    (row,) = user.asks("ps")["servers"]
    assert set(row) == set(facts) == set(user.asks("list")["servers"][0]) == set(documented_keys())
    assert row["pid"] == started["pid"]
    assert "running" in user.types("ps")
    assert "1 ready" in user.types("list")
    assert "listening" in user.types("logs", "one", "-n", "1")
    assert "restart one" in user.types("edit", "one", "--max-model-len", "1k")
    assert user.asks("restart", "one")["pid"] != started["pid"]
    assert "stop it first" in user.types("rm", "one", code=1)
    assert user.asks("stop", "one")["result"] == "ended"
    assert "not running" in user.types("stop", "one")
    assert identify(started["pid"]) is None
    assert "the server was killed by SIGTERM" in user.types("logs", "one", "--follow")
    user.types("rm", "one")
    assert not user.folders.of("one").exists()
    assert "No server is registered" in user.types("list")


def test_a_terminal_that_knows_no_such_letter_shows_its_number(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    user.types("add", "one", "--model-path", "m\N{LATIN SMALL LETTER O WITH DIAERESIS}/x")
    written = io.BytesIO()
    out = io.TextIOWrapper(written, encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    assert main(["server", "list"]) == 0
    out.flush()
    assert b"m\\xf6/x" in written.getvalue()


@pytest.mark.promise("DOCS-1")
def test_the_commands_of_the_readme_run_as_printed(user: User) -> None:
    (block,) = (block.text for block in code_blocks(ENGLISH) if "server add demo" in block.text)
    for line in block.splitlines():
        program, command, *words = line.split()
        assert (program, command) == ("mxext", "server")
        user.types(*words)
    assert user.types("list", "--quiet") == "demo\n"


@pytest.mark.promise("REGISTRY-4")
def test_a_failed_start_shows_the_end_of_the_log_and_a_hint(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SERVER", "dies")
    monkeypatch.setenv("FAKE_LAST_WORDS", "There is no model 'x' here.")
    user.types("add", "one", "--model-path", "x", "--port", user.port())
    printed = user.types("start", "one", code=1)
    assert "ended with code 1 before it was ready" in printed
    assert "  | There is no model 'x' here." in printed
    assert "-> The native backend cannot serve 'x'" in printed
    error = user.asks("start", "one", code=1)["error"]
    assert error["cause"] == "start failed"
    assert error["log_tail"] == ["There is no model 'x' here."]
    assert user.asks("status", "one", code=3)["problem"] == "it ended with code 1"
    assert "PROBLEM  one: it ended with code 1" in user.types("doctor", code=1)


@pytest.mark.promise("REGISTRY-2")
def test_a_killed_server_has_died_and_can_be_started_again(user: User) -> None:
    user.types("add", "one", "--port", user.port())
    pid = user.asks("start", "one")["pid"]
    run = read_run(user.folders.run_file("one"))
    assert run is not None
    os.kill(pid, signal.SIGKILL)
    assert wait_for_end(run.keeper, 60)
    facts = user.asks("status", "one", code=3)
    assert (facts["state"], facts["problem"]) == ("died", "it was killed by SIGKILL")
    assert user.asks("start", "one")["pid"] != pid


def test_a_server_whose_keeper_was_killed_goes_on_and_can_be_stopped(user: User) -> None:
    user.types("add", "one", "--port", user.port())
    user.types("start", "one")
    run = read_run(user.folders.run_file("one"))
    assert run is not None
    os.kill(run.keeper.pid, signal.SIGKILL)
    assert wait_for_end(run.keeper, 60)
    assert user.asks("status", "one")["state"] == "running"
    assert "nothing is logged" in user.types("doctor")
    assert user.asks("stop", "one")["result"] == "ended"
    assert not run.server.is_alive()


@pytest.mark.promise("REGISTRY-2")
def test_a_number_that_now_belongs_to_another_process_is_left_alone(user: User) -> None:
    user.types("add", "one", "--port", user.port())
    path = user.folders.run_file("one")
    user.types("start", "one")
    content = json.loads(path.read_text())
    user.types("stop", "one")
    for role in ("server", "keeper"):
        content[role]["pid"] = os.getpid()  # as if the number had been given away since
    path.write_text(json.dumps(content))
    assert user.asks("status", "one", code=3)["state"] == "died"
    assert user.asks("stop", "one")["result"] == "not running"
    assert not path.exists()


def test_a_server_that_does_not_end_is_killed(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SERVER", "deaf")
    user.types("add", "one", "--port", user.port())
    pid = user.asks("start", "one")["pid"]
    assert "Killed 'one'" in user.types("stop", "one", "--timeout", "0.2")
    assert identify(pid) is None


def test_a_clock_that_was_set_back_makes_no_server_start_for_ever(user: User) -> None:
    user.types("add", "one", "--port", user.port())
    user.folders.of("one").mkdir(parents=True)
    with subprocess.Popen(["sleep", "600"]) as process:
        sleeper = identify(process.pid)
        assert sleeper is not None
        run = Run(sleeper, sleeper, int(user.port()), "127.0.0.1", ("sleep",), time.time() + 3600)
        run.write(user.folders.run_file("one"))
        try:
            assert user.asks("status", "one", code=3)["state"] == "not answering"
        finally:
            process.kill()


def test_a_program_that_cannot_be_started_is_named(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    user.types("add", "one", "--port", user.port())
    monkeypatch.setattr("sys.executable", "/no/such/python")
    assert "'/no/such/python': No such file" in user.types("start", "one", code=1)


def test_a_server_that_is_not_ready_in_time_goes_on(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SERVER", "loading")
    user.types("add", "one", "--port", user.port())
    user.types("start", "one", "--no-wait")
    assert "goes on starting" in user.types("start", "one", "--timeout", "0.5", code=3)
    assert user.asks("ps")["servers"][0]["state"] == "starting"


def test_a_server_that_does_not_listen_yet_is_starting(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_mxext.registry.servers.probe", lambda _url, _key: Probe(problem="nothing answers"))
    monkeypatch.setattr("vllm_mxext.registry.servers._LISTENS_S", math.inf)
    user.types("add", "one", "--port", user.port())
    user.types("start", "one", "--no-wait")
    assert user.asks("status", "one", code=3)["state"] == "starting"
    monkeypatch.setattr("vllm_mxext.registry.servers._LISTENS_S", 0.0)
    assert user.asks("status", "one", code=3)["state"] == "not answering"


@pytest.mark.promise("REGISTRY-4")
def test_a_taken_port_names_who_has_it(user: User) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        user.types("add", "one", "--port", str(port))
        assert f"Port {port} is taken by process {os.getpid()} " in user.types("start", "one", code=1)
        assert f"its port {port} is taken by process {os.getpid()} " in user.types("doctor", code=1)


@pytest.mark.promise("REGISTRY-4")
def test_a_port_taken_by_another_registered_server_names_it(user: User) -> None:
    port = user.port()
    for name in ("one", "two"):
        user.types("add", name, "--port", port)
    user.types("start", "one")
    assert f"Port {port} is taken by the server 'one'" in user.types("start", "two", code=1)
    assert f"its port {port} is taken by the server 'one'" in user.types("doctor", code=1)


def test_a_port_is_chosen_once_and_remembered(user: User) -> None:
    for name in ("one", "two"):
        user.types("add", name)
    ports = [user.asks("start", name)["port"] for name in ("one", "two")]
    assert len(set(ports)) == 2
    user.types("stop", "one")
    assert user.asks("start", "one")["port"] == ports[0]


@pytest.mark.promise("REGISTRY-3")
def test_a_key_reaches_the_server_and_nothing_else(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    user.types("add", "one", "--api-key-env", "MY_KEY", "--port", user.port())
    assert "MY_KEY" in user.types("start", "one", code=2)
    monkeypatch.setenv("MY_KEY", "S3CRET")
    printed = (
        user.types("start", "one") + user.types("show", "one") + user.types("status", "one") + user.types("export")
    )
    assert "fake-model" in printed
    kept = "".join(
        path.read_text()
        for folder in (user.folders.config, user.folders.state)
        for path in folder.rglob("*")
        if path.is_file()
    )
    assert "S3CRET" not in printed + kept
    monkeypatch.setenv("MY_KEY", "another")
    assert "wants another key" in user.types("status", "one", code=3)


def test_names_are_taken_once_and_unknown_ones_are_refused(user: User) -> None:
    user.types("add", "one", "--model-path", "a/b")
    assert "registered already" in user.types("add", "one", "--model-path", "c/d", code=4)
    user.types("add", "one", "--model-path", "c/d", "--replace")
    user.types("add", "one", "--max-model-len", "2k")  # only settings: those of the registered one change
    assert user.asks("show", "one")["max_model_len"] == 2000
    assert user.asks("show", "one")["model_path"] == "c/d"
    assert user.asks("edit", "one", "--unset", "max-model-len").get("max_model_len") is None
    for command in ("start", "stop", "status", "show", "logs", "rm", "restart", "export"):
        assert "did you mean one?" in user.types(command, "on", code=4)
    assert user.asks("start", "on", code=4)["error"]["cause"] == "unknown name"


@pytest.mark.parametrize(
    "words",
    [
        ["add"],
        ["add", "x", "--port", "no"],
        ["add", "x", "--tensor-parallel", "2"],
        ["fly"],
        ["ls"],
        ["stop", "--al"],
        ["add", "x", "--extra-args", "it's"],
    ],
)
def test_wrong_usage_is_one_line_and_code_2(user: User, words: list[str]) -> None:
    assert user.types(*words, code=2).count("\n") == 1


@pytest.mark.promise("REGISTRY-6")
def test_an_address_of_others_is_asked_and_never_started(user: User) -> None:
    port = user.port()
    user.types("add", "own", "--port", port)
    user.types("start", "own")
    user.types("add", "far", "--endpoint-url", f"http://127.0.0.1:{port}/v1")
    assert user.asks("status", "far")["models"] == ["fake-model"]
    assert "start and stop it where it runs" in user.types("start", "far", code=1)
    user.types("stop", "own")
    assert user.asks("status", "far", code=3)["state"] == "unreachable"
    assert "nothing answers" in user.types("doctor", code=1)


@pytest.mark.promise("REGISTRY-6")
@pytest.mark.parametrize(
    ("backend", "install"),
    [
        ("vllm", "pip install vllm"),
        ("llama.cpp", "brew install llama.cpp"),
        ("mlx", "pip install mlx-lm"),
        ("tensorrt_llm", "pip install tensorrt_llm"),
    ],
)
def test_another_backend_says_what_is_missing(
    user: User, monkeypatch: pytest.MonkeyPatch, backend: str, install: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert install in user.types("add", "one", "--model-path", "gpt2", "--backend", backend)
    assert install in user.types("start", "one", code=5)
    assert install in user.types("doctor", code=1)


def test_another_backend_that_is_there_gives_the_command_to_type(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--model-path", "gpt2", "--backend", "vllm", "--tensor-parallel", "2")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: ModuleSpec(name, None))  # only a folder of that name
    assert "is not installed" in user.types("add", "one", *words)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: ModuleSpec(name, None, origin="there"))
    printed = user.types("start", "one", code=5)
    assert f"{sys.executable} -m vllm.entrypoints.openai.api_server --model gpt2" in printed
    assert "--tensor-parallel-size 2" in printed


@pytest.mark.parametrize(
    ("backend", "command"),
    [
        ("llama.cpp", "llama-server --model tiny.gguf --alias one --host 127.0.0.1 --port 9000 --ctx-size 1024 -t 1"),
        ("mlx", "mlx_lm.server --model tiny.gguf --host 127.0.0.1 --port 9000 -t 1"),
        ("transformers", "transformers serve tiny.gguf --host 127.0.0.1 --port 9000 -t 1"),
    ],
)
def test_the_command_of_another_backend_serves_the_registered_model(user: User, backend: str, command: str) -> None:
    words = ("--model-path", "tiny.gguf", "--port", "9000", "--max-model-len", "1024", "--extra-args", "-t", "1")
    user.types("add", "one", "--backend", backend, *words)
    assert command in user.types("show", "one")


def test_registrations_move_as_a_file(user: User, tmp_path: Path) -> None:
    user.types("add", "one", "--model-path", "a/b", "--env", "A=1", "--extra-args", "--seed", "1")
    user.types("add", "two", "--endpoint-url", "http://192.0.2.1:8000")
    before = user.asks("show", "one")
    user.types("export", "--output", str(tmp_path / "all.json"))
    assert "so nothing was imported" in user.types("import", str(tmp_path / "all.json"), code=4)
    for name in ("one", "two"):
        user.types("rm", name)
    assert user.asks("import", str(tmp_path / "all.json"))["servers"] == ["one", "two"]
    assert user.asks("show", "one") == before
    (tmp_path / "broken.json").write_text("{")
    assert "not valid JSON" in user.types("import", str(tmp_path / "broken.json"), code=1)
    assert user.types("list", "--quiet").split() == ["one", "two"]


def test_the_doctor_finds_broken_files_and_what_was_left_behind(user: User, tmp_path: Path) -> None:
    user.types("add", "one", "--model-path", str(tmp_path / "nowhere"))
    user.folders.of("gone").mkdir(parents=True)
    user.folders.of("one").mkdir(parents=True)
    user.folders.run_file("one").write_text("{")
    printed = user.types("doctor", code=1)
    assert "there is no model at" in printed
    assert "belongs to no registered server" in printed
    assert "is damaged" in printed
    assert "unknown" in user.types("list")
    user.types("add", "far", "--host", "192.0.2.1", "--port", "9")
    assert "--host cannot be used" in user.types("doctor", code=1)
    user.folders.book.write_text("broken")
    assert "is not valid JSON" in user.types("doctor", code=1)
    assert user.folders.book.read_text() == "broken"


def test_progress_is_a_line_that_changes_on_terminals_and_lines_elsewhere() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = {}
    for kind in (Terminal, io.StringIO):
        out = kind()
        with Waiting("one", is_silent=False, out=out) as waiting:
            for seconds in (0.0, 0.1, 1.0, 12.0):
                waiting.report(Progress(seconds, "loading", "last \x1b[31mline"))
        shown[kind] = out.getvalue()
    assert shown[io.StringIO] == "one: loading, 0 s\none: loading, 12 s\n"
    assert shown[Terminal].count("\n") == 0
    assert "one: loading, 1 s  last [31mline" in shown[Terminal]
    assert shown[Terminal].endswith("\r\x1b[K")


def test_an_editor_changes_a_registration_or_nothing(
    user: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user.types("add", "one", "--model-path", "a/b")
    assert "What is to change?" in user.types("edit", "one", code=2)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for content, code in (('{"model_path": "c/d", "max_model_len": 512}', 0), ("{", 2), ('{"prot": 1}', 2)):
        (tmp_path / "wanted.json").write_text(content)
        monkeypatch.setenv("EDITOR", f"cp {tmp_path / 'wanted.json'}")
        user.types("edit", "one", code=code)
        assert user.asks("show", "one")["model_path"] == "c/d"
    monkeypatch.setenv("EDITOR", str(tmp_path / "none"))
    assert "cannot be started" in user.types("edit", "one", code=2)
    monkeypatch.setenv("EDITOR", "false")
    assert "nothing was changed" in user.types("edit", "one", code=1)
