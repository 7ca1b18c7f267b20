"""Commands typed at the same time, and servers that end at a bad moment: one server per name, none unknown."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.registry.conftest import FAKE, User
from vllm_mxext.registry import servers as servers_module
from vllm_mxext.registry.errors import NotRunningError, PortTakenError
from vllm_mxext.registry.processes import identify, wait_for_end
from vllm_mxext.registry.record import read_record
from vllm_mxext.registry.runs import read_run
from vllm_mxext.registry.starting import Progress, pick_port

ROOT = Path(__file__).parents[3]

COMMAND = f"""
import sys
from dataclasses import replace
from vllm_mxext.cli.main import main
from vllm_mxext.registry import backends
fake = lambda record, port: [sys.executable, {str(FAKE)!r}, "--port", str(port)]
backends.BACKENDS["native"] = replace(backends.BACKENDS["native"], command=fake)
sys.exit(main(["server", *sys.argv[1:], "--json"]))
"""


def type_at_once(*lines: str) -> list[tuple[int, dict[str, Any]]]:
    """Exit codes and answers of commands that run as processes at the same time."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    typed = [
        subprocess.Popen(
            [sys.executable, "-c", COMMAND, *line.split()], env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for line in lines
    ]  # fmt: skip
    answers = [process.communicate(timeout=120) for process in typed]
    assert not any(complaint for _, complaint in answers if b"Traceback" in complaint), answers
    return [(one.returncode, json.loads(out)) for one, (out, _) in zip(typed, answers, strict=True)]


@pytest.mark.promise("REGISTRY-8")
def test_of_many_starts_at_once_exactly_one_starts(user: User) -> None:
    user.types("add", "one", "--port", user.port())
    answers = type_at_once(*["start one"] * 4)
    assert {code for code, _ in answers} == {0}
    assert sorted(answer["was_running"] for _, answer in answers) == [False, True, True, True]
    assert len({answer["pid"] for _, answer in answers}) == 1


@pytest.mark.promise("REGISTRY-8")
def test_whatever_is_typed_at_once_leaves_no_server_that_nobody_knows(user: User) -> None:
    user.types("add", "one", "--port", user.port())
    pids = {answer.get("pid") for _, answer in type_at_once("start one", "restart one", "stop one", "rm one --force")}
    run = read_run(user.folders.run_file("one"))
    known = set() if run is None else {run.server.pid}
    alive = {pid for pid in pids if isinstance(pid, int) and identify(pid) is not None}
    assert alive <= known


@pytest.mark.promise("REGISTRY-8")
def test_a_restart_that_cannot_start_leaves_the_server_alone(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    user.types("add", "one", "--port", user.port())
    pid = user.asks("start", "one")["pid"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    user.types("edit", "one", "--backend", "vllm", "--model-path", "gpt2")
    assert "is not installed" in user.types("restart", "one", code=5)
    user.types("edit", "one", "--backend", "native", "--api-key-env", "NOT_SET")
    assert "is not set" in user.types("restart", "one", code=2)
    assert user.asks("status", "one")["pid"] == pid


@pytest.mark.promise("REGISTRY-8")
def test_a_restart_that_fails_says_that_none_runs(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    user.types("add", "one", "--port", user.port())
    user.types("start", "one")
    monkeypatch.setenv("FAKE_SERVER", "dies")
    assert "has been stopped, so none runs now" in user.types("restart", "one", code=1)
    assert "none runs now" not in user.types("restart", "one", code=1)


def test_a_server_that_is_stopped_while_it_starts_says_so(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SERVER", "loading")
    user.types("add", "one", "--port", user.port())

    def stop(_progress: Progress) -> None:
        user.servers.stop("one", timeout_s=60)

    with pytest.raises(NotRunningError, match="stopped by another command"):
        user.servers.start("one", timeout_s=60, report=stop)


def test_the_keeper_of_an_earlier_run_writes_down_nothing_after_the_next(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers_module, "KEEPER_S", 0.1)
    user.types("add", "one", "--port", user.port())
    user.types("start", "one")
    before = read_run(user.folders.run_file("one"))
    assert before is not None
    os.kill(before.keeper.pid, signal.SIGSTOP)  # as on a machine that has no time for it
    os.kill(before.server.pid, signal.SIGKILL)
    assert wait_for_end(before.server, 60)
    pid = user.asks("start", "one")["pid"]
    assert not before.keeper.is_alive()
    assert user.asks("status", "one")["pid"] == pid


@pytest.mark.promise("REGISTRY-8")
def test_a_server_that_runs_cannot_become_somebody_elses(user: User, tmp_path: Path) -> None:
    user.types("add", "far", "--endpoint-url", "http://127.0.0.1:9")
    exported = user.types("export").replace('"far"', '"one"')
    (tmp_path / "far.json").write_text(exported)
    user.types("add", "one", "--port", user.port())
    user.types("start", "one")
    for words in (
        ("add", "one", "--replace", "--endpoint-url", "http://127.0.0.1:9"),
        ("edit", "one", "--endpoint-url", "http://127.0.0.1:9"),
        ("import", "--replace", str(tmp_path / "far.json")),
    ):
        assert "stop it first" in user.types(*words, code=1)
    user.types("edit", "one", "--host", "127.0.0.2")
    assert user.asks("status", "one")["url"].startswith("http://127.0.0.1:")  # where it runs until a restart
    assert user.asks("stop", "one")["result"] == "ended"


def test_a_port_of_a_server_that_does_not_listen_yet_is_taken() -> None:
    record = read_record("one", {"port": 8123})
    with pytest.raises(PortTakenError, match="by the server 'two'"):
        pick_port(record, {("127.0.0.1", 8123): "two"}, set(), None)
    assert pick_port(record, {("127.0.0.1", 8123): "two"}, set(), 8123) == 8123  # its own until it is stopped
