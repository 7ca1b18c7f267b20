"""However a program that uses the asynchronous engine ends, its engine process ends too and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_mxext.registry.processes import identify, wait_for_end

pytestmark = pytest.mark.e2e

WAIT_S = 60

PROGRAM = """
import asyncio, sys
from tests.engine_fakes import engine_config
from vllm_mxext import AsyncLLMEngine, OutputKind, SamplingParams
from vllm_mxext.config.frontend import FrontendConfig
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.engine.backends.native import NativeEngineClient
from vllm_mxext.native.core_client import ProcessCoreClient

config = engine_config()
command = (sys.executable, "-m", "tests.fake_core_process", "none")
client = NativeEngineClient(
    config, FrontendConfig(), FakeTokenizer(), spawn=lambda: ProcessCoreClient(config, command=command)
)
params = SamplingParams(max_tokens=240, ignore_eos=True, output_kind=OutputKind.DELTA)

async def work(engine, ending):
    stream = engine.generate("hello", params, "r")
    await anext(stream)
    print(client.supervisor.core.process_id, flush=True)
    if ending == "exception":
        raise ValueError("the program's own mistake")
    if ending in ("ctrl-c", "kill"):
        await asyncio.Event().wait()

async def main(ending):
    engine = AsyncLLMEngine(client)
    if ending == "forgets":
        await work(engine, ending)
    else:
        async with engine:
            await work(engine, ending)

asyncio.run(main(sys.argv[1]))
"""


def has_ended(process_id: int) -> bool:
    core = identify(process_id)
    return core is None or wait_for_end(core, WAIT_S)


@pytest.fixture
def folder() -> Iterator[Path]:
    """For temporary files, with a path short enough for a socket, wherever those of tests are."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


@pytest.mark.parametrize(
    ("ending", "last_line"),
    [
        ("normal", ""),
        ("forgets", ""),
        ("exception", "ValueError: the program's own mistake"),
        ("ctrl-c", "KeyboardInterrupt"),
    ],
)
def test_the_engine_process_ends_with_its_program(folder: Path, ending: str, last_line: str) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, ending],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
        start_new_session=True,
    )
    assert program.stdout is not None
    core_id = int(program.stdout.readline())
    if ending == "ctrl-c":
        os.killpg(program.pid, signal.SIGINT)  # as a terminal does: the engine process gets it too
    _, errors = program.communicate(timeout=WAIT_S)
    assert has_ended(core_id)
    assert (errors.splitlines() or [""])[-1] == last_line
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a stopped process stays until it is continued")
def test_a_stopped_engine_process_ends_with_its_killed_program(folder: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "kill"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    assert program.stdout is not None
    core_id = int(program.stdout.readline())
    os.kill(core_id, signal.SIGSTOP)
    program.kill()
    program.communicate(timeout=WAIT_S)
    assert has_ended(core_id)
    assert list(folder.iterdir()) == []
