"""Processes are known by more than a number, ports by their owner, and logs stay small and whole."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.registry.conftest import reserved_ports
from vllm_mxext.bench.server_process import reserved_port
from vllm_mxext.errors import ConfigError
from vllm_mxext.registry import logs, ports
from vllm_mxext.registry.errors import RegistryError
from vllm_mxext.registry.hints import hint
from vllm_mxext.registry.processes import end, identify, send, wait_for_end
from vllm_mxext.registry.record import read_record


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


@pytest.mark.promise("REGISTRY-2")
def test_a_reused_number_is_somebody_else_and_gets_no_signal(sleeper: subprocess.Popen[bytes]) -> None:
    now = identify(sleeper.pid)
    assert now is not None
    assert now.is_alive()
    for before in (replace(now, start=now.start - 1), replace(now, boot="another boot")):
        assert not before.is_alive()
        assert not send(before, signal.SIGKILL)
        assert end(before, timeout_s=0)
    assert sleeper.poll() is None
    assert end(now, timeout_s=60)
    assert sleeper.wait() == -signal.SIGTERM


def test_a_process_of_another_user_is_told_and_goes_on(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_words: object) -> None:
        raise PermissionError

    monkeypatch.setattr("os.kill", refuse)
    monkeypatch.setattr("signal.pidfd_send_signal", refuse, raising=False)
    now = identify(sleeper.pid)
    assert now is not None
    with pytest.raises(RegistryError, match="belongs to another user"):
        end(now, timeout_s=0)
    assert now.is_alive()


def test_a_process_that_nobody_has_buried_is_dead() -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert identify(process.pid) is None
    process.wait()


_OUTLIVES_ITS_FIRST_THREAD = """
import ctypes, platform, socket, sys, threading, time
listening = socket.create_server(("127.0.0.1", int(sys.argv[1])))
threading.Thread(target=lambda: time.sleep(600)).start()
print("listening", flush=True)
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)  # ends this thread only
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_has_not_ended_before_its_last_thread() -> None:
    """A killed server's first thread often ends before the one that holds the port last."""
    with (
        reserved_port() as port,
        subprocess.Popen(
            [sys.executable, "-c", _OUTLIVES_ITS_FIRST_THREAD, str(port)], stdout=subprocess.PIPE
        ) as process,
    ):
        assert process.stdout is not None
        process.stdout.readline()
        state = Path(f"/proc/{process.pid}/stat")
        while state.read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        now = identify(process.pid)
        assert now is not None
        assert not ports.is_free("127.0.0.1", port)
        process.kill()
        assert wait_for_end(now, 60)
        assert ports.is_free("127.0.0.1", port)


def test_a_taken_port_names_its_owner_and_the_next_one_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    with reserved_ports(3) as first, socket.create_server(("127.0.0.1", first + 1)):
        monkeypatch.setattr(ports, "FIRST", first)
        assert not ports.is_free("127.0.0.1", first + 1)
        assert f"process {os.getpid()} " in ports.owner(first + 1)
        assert ports.choose("127.0.0.1", first + 1, set()) == first
        assert ports.choose("127.0.0.1", first + 1, {first}) == first + 2


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match="--host cannot be used"):
        ports.is_free("192.0.2.1", 8000)


@pytest.mark.promise("REGISTRY-5")
def test_a_log_is_rotated_at_line_ends_and_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    log = logs.RotatingLog(path, max_bytes=100, kept=2)
    for number in range(100):
        log.write(f"line {number:03}, ".encode())
        log.write(b"its end\n")
    log.close()
    files = logs.log_files(path)
    assert [file.name for file in files] == ["server.log", "server.log.1", "server.log.2"]
    assert sum(file.stat().st_size for file in files) < 400
    lines = logs.tail(path, 1000)
    assert lines == [f"line {number:03}, its end" for number in range(100 - len(lines), 100)]
    assert logs.tail(path, 12) == lines[-12:]
    assert logs.tail(path, 0) == []
    assert logs.last_line(path) == "line 099, its end"


def test_a_log_is_followed_through_its_rotation(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    log = logs.RotatingLog(path, max_bytes=30, kept=5)
    log.write(b"before\n")
    steps = iter([b"first\n" * 3, b"second\n" * 3, b"third\n" * 3])
    done = False

    def sleep(_seconds: float) -> None:
        nonlocal done
        step = next(steps, None)
        done = step is None
        log.write(step or b"")

    lines = list(logs.follow(path, 1, lambda: done, sleep=sleep))
    assert lines == ["before", *["first"] * 3, *["second"] * 3, *["third"] * 3]


def test_a_followed_log_loses_neither_halves_of_letters_nor_its_last_words(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    log = logs.RotatingLog(path)
    log.write("old\nbefore\nfür ".encode()[:-2])
    steps = iter(["ü".encode()[:1], "ü".encode()[1:] + b"x\nlast words"])

    def sleep(_seconds: float) -> None:
        log.write(next(steps, b""))

    over = iter([False, False, False])
    assert list(logs.follow(path, 1, lambda: next(over, True), sleep=sleep)) == ["füüx", "last words"]


def test_lines_of_ours_begin_below_what_the_server_has_not_ended(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    logs.RotatingLog(path).write(b"no end")
    log = logs.RotatingLog(path, max_bytes=40)
    log.note("starting")
    log.write(b"a line that came in two halves, ")
    log.write(b"and was not cut\n")
    log.write(b"next\n")
    assert [line.partition(" 2")[0] for line in logs.tail(path, 9)] == [
        "no end", "---", "a line that came in two halves, and was not cut", "next"
    ]  # fmt: skip
    assert len(logs.log_files(path)) > 1


@pytest.mark.parametrize(
    ("line", "code", "sentence"),
    [
        ("OSError: [Errno 98] Address already in use", 1, "Port 9 is taken by"),
        ("ModuleNotFoundError: No module named 'vllm'", 1, "A package is missing (vllm)"),
        ("There is no model 'gpt2' in the packaged manifest", 2, "'builtin' needs no download"),
        ("torch.OutOfMemoryError: CUDA out of memory", 1, "There is not enough memory"),
        ("error: Unknown flag --sed", 2, "--extra-args"),
        ("", -9, "killed from outside"),
        ("nothing of interest", 1, ""),
    ],
)
def test_a_failed_start_has_a_hint_by_its_cause(line: str, code: int, sentence: str) -> None:
    found = hint(read_record("one", {"model_path": "gpt2"}), 9, code, (line,))
    assert found.startswith(sentence) if sentence == "" else sentence in found
    assert bool(found) == bool(sentence)


def test_the_keeper_goes_on_when_the_log_cannot_be_written(tmp_path: Path) -> None:
    log = logs.RotatingLog(tmp_path / "server.log")
    log.close()
    log.write(b"lost\n")
    assert logs.tail(tmp_path / "server.log", 5) == []


def test_the_registry_imports_neither_torch_nor_the_engine() -> None:
    code = (
        "import sys, vllm_mxext.cli.server, vllm_mxext.registry.doctor, vllm_mxext.registry.keeper\n"
        "heavy = {'torch', 'httpx', 'pydantic', 'vllm_mxext.engine', 'vllm_mxext.server'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
