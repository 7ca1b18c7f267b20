"""A core in a real process: start, work, failures and ends; the model is a hash function, so it starts fast."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.engine_fakes import engine_config, undisturbed
from vllm_mxext.errors import AdapterError
from vllm_mxext.native import core_messages as messages
from vllm_mxext.native.core_client import CoreExit, ProcessCoreClient
from vllm_mxext.native.protocol import EngineCoreRequest
from vllm_mxext.registry.processes import identify, wait_for_end
from vllm_mxext.sampling_params import SamplingParams

WAIT_S = 60
ENDLESS = 50_000
"""Tokens that take a core minutes: however late a test comes, they are not all there."""


class Listener:
    """Remembers what a core says."""

    def __init__(self) -> None:
        self.messages: list[messages.FromCore] = []
        self.exit: CoreExit | None = None
        self._changed = asyncio.Event()

    def on_core_message(self, message: messages.FromCore) -> None:
        self.messages.append(message)
        self._changed.set()

    def on_core_exit(self, exit_: CoreExit) -> None:
        self.exit = exit_
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), WAIT_S)

    async def until_ready(self) -> None:
        await self.until(lambda: any(isinstance(message, messages.Ready) for message in self.messages))

    async def until_exit(self) -> CoreExit:
        await self.until(lambda: self.exit is not None)
        assert self.exit is not None
        return self.exit

    def tokens(self, request_id: str) -> list[int]:
        return [
            token_id
            for message in self.messages
            if isinstance(message, messages.StepOutputs)
            for output in message.outputs.outputs
            if output.request_id == request_id
            for token_id in output.new_token_ids
        ]

    def finish_reasons(self) -> dict[str, str]:
        return {
            output.request_id: output.finish_reason.name
            for message in self.messages
            if isinstance(message, messages.StepOutputs)
            for output in message.outputs.outputs
            if output.finish_reason is not None
        }


def make_client(fault: str = "none") -> ProcessCoreClient:
    config = engine_config(max_model_len=2 * ENDLESS)
    return ProcessCoreClient(config, command=(sys.executable, "-m", "tests.fake_core_process", fault))


def request(request_id: str, **params: object) -> EngineCoreRequest:
    values = {"max_tokens": 12, "ignore_eos": True, **params}
    return EngineCoreRequest(request_id, [1, 2, 3], SamplingParams(**values), seed=2**64 - 5)


@pytest.fixture
async def ready() -> AsyncIterator[tuple[ProcessCoreClient, Listener]]:
    client, listener = make_client(), Listener()
    client.start(listener)
    await listener.until_ready()
    yield client, listener
    await client.stop()


@pytest.fixture
def temporary_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a path short enough for a socket, wherever those of tests are."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


async def test_a_core_serves_requests_over_its_socket(ready: tuple[ProcessCoreClient, Listener]) -> None:
    client, listener = ready
    requests = [request("a"), request("b", max_tokens=30, logprobs=2)]
    client.add_requests(requests)
    await listener.until(lambda: len(listener.finish_reasons()) == 2)
    for each in requests:
        assert listener.tokens(each.request_id) == undisturbed(each)


async def test_a_launched_process_is_the_one_that_is_started() -> None:
    client, listener = make_client(), Listener()
    client.launch()
    process_id = client.process_id
    client.start(listener)
    await listener.until_ready()
    assert client.process_id == process_id
    await client.stop()


async def test_start_up_is_reported(ready: tuple[ProcessCoreClient, Listener]) -> None:
    _, listener = ready
    assert listener.messages[:2] == [messages.Progress("loading", 0.5), messages.Progress("warming up", 1.0)]
    assert listener.messages[2] == messages.Ready(messages.CoreInfo(ENDLESS // 2, 4, "hash"))


@pytest.mark.promise("CORE-8")
async def test_abort_reaches_the_core_between_two_steps(ready: tuple[ProcessCoreClient, Listener]) -> None:
    client, listener = ready
    client.add_requests([request("a", max_tokens=ENDLESS)])
    await listener.until(lambda: bool(listener.tokens("a")))
    client.abort(["a"])
    await listener.until(lambda: bool(listener.finish_reasons()))
    assert listener.finish_reasons() == {"a": "ABORT"}


async def test_the_prefix_cache_can_be_reset(ready: tuple[ProcessCoreClient, Listener]) -> None:
    client, _ = ready
    assert await client.reset_prefix_cache()


def adapter(path: str, generation: int = 1) -> messages.AdapterSpec:
    return messages.AdapterSpec(1, generation, "a", path, "gguf", "print")


async def test_adapters_are_loaded_and_dropped_and_every_answer_tells_how_all_stand() -> None:
    client, listener = make_client("adapters"), Listener()
    client.start(listener)
    await listener.until_ready()
    client.add_adapter(adapter("/first"), reads_now=False)
    with pytest.raises(AdapterError, match="no folder '/none'"):
        await client.load_adapter(adapter("/none"))
    assert await client.load_adapter(adapter("/second", 2))
    await client.drop_adapter((1, 1))
    told = [message for message in listener.messages if isinstance(message, messages.AdapterDone)]
    assert [(done.call_id, [use.generation for use in done.adapters]) for done in told] == [
        (0, [1]), (1, [1]), (2, [1, 2]), (3, [2])
    ]  # fmt: skip
    await client.stop()


async def test_what_is_asked_of_a_core_that_dies_is_not_done_and_its_listener_hears_first() -> None:
    client, listener = make_client("adapters"), Listener()
    client.start(listener)
    await listener.until_ready()
    assert not await client.load_adapter(adapter("/lethal"))
    assert listener.exit is not None
    assert not await client.load_adapter(adapter("/first"))
    await client.drop_adapter((1, 1))
    assert await client.reset_prefix_cache()


@pytest.mark.promise("ENG-6")
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("config", CoreExit("ConfigError: The model does not fit; use a smaller one.", is_config_error=True)),
        ("crash", CoreExit("ValueError: shapes differ")),
        ("killed", CoreExit("The engine process was killed by SIGKILL; the kernel does this when memory runs out.")),
    ],
)
async def test_a_failed_start_gives_its_root_cause(fault: str, expected: CoreExit) -> None:
    client, listener = make_client(fault), Listener()
    client.start(listener)
    assert await listener.until_exit() == expected


async def test_a_program_that_is_no_core_is_reported_with_its_exit_code() -> None:
    client, listener = ProcessCoreClient(engine_config(), command=(sys.executable, "-c", "exit(3)")), Listener()
    client.start(listener)
    assert (await listener.until_exit()).reason == "The engine process exited with code 3."


@pytest.mark.promise("ENG-4")
async def test_death_is_noticed_and_everything_sent_afterwards_is_ignored(
    ready: tuple[ProcessCoreClient, Listener],
) -> None:
    client, listener = ready
    pending = asyncio.ensure_future(client.reset_prefix_cache())
    client.add_requests([request("a", max_tokens=ENDLESS)])
    os.kill(client.process_id, signal.SIGKILL)
    assert "SIGKILL" in (await listener.until_exit()).reason
    client.add_requests([request("b")])
    client.abort(["a"])
    assert await pending in (True, False)


def entries(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_nothing_is_left_on_disk_once_the_core_is_connected(temporary_folder: Path) -> None:
    client, listener = make_client(), Listener()
    client.start(listener)
    (folder,) = entries(temporary_folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    await listener.until_ready()
    assert entries(temporary_folder) == []
    await client.stop()


async def test_nothing_is_left_on_disk_when_the_core_never_connects(temporary_folder: Path) -> None:
    client, listener = ProcessCoreClient(engine_config(), command=(sys.executable, "-c", "exit(3)")), Listener()
    client.start(listener)
    await listener.until_exit()
    assert entries(temporary_folder) == []


async def test_stop_ends_the_process_while_it_works(ready: tuple[ProcessCoreClient, Listener]) -> None:
    client, listener = ready
    client.add_requests([request(str(i), max_tokens=ENDLESS) for i in range(8)])
    await client.stop(grace_s=WAIT_S)
    assert not psutil.pid_exists(client.process_id)
    assert (await listener.until_exit()).reason == "The engine process exited with code 0."


async def test_stop_ends_a_core_that_is_still_starting() -> None:
    client, listener = make_client(), Listener()
    client.start(listener)
    await client.stop()
    assert not psutil.pid_exists(client.process_id)


async def test_stop_ends_a_core_that_does_not_listen(ready: tuple[ProcessCoreClient, Listener]) -> None:
    client, _ = ready
    os.kill(client.process_id, signal.SIGSTOP)
    await client.stop(grace_s=0.01)
    assert not psutil.pid_exists(client.process_id)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_core_is_seen_to_work_and_to_be_stopped(ready: tuple[ProcessCoreClient, Listener]) -> None:
    client, _ = ready
    while client.is_at_work:  # noqa: ASYNC110 - the system tells of no end, here and below
        await asyncio.sleep(0)
    client.add_requests([request("a", max_tokens=ENDLESS)])
    while not client.is_at_work:  # noqa: ASYNC110
        await asyncio.sleep(0)
    os.kill(client.process_id, signal.SIGSTOP)
    while client.is_at_work:  # noqa: ASYNC110
        await asyncio.sleep(0)
    os.kill(client.process_id, signal.SIGCONT)


async def test_ctrl_c_in_the_terminal_leaves_the_core_alone(ready: tuple[ProcessCoreClient, Listener]) -> None:
    client, listener = ready
    os.kill(client.process_id, signal.SIGINT)
    client.add_requests([request("a")])
    await listener.until(lambda: listener.finish_reasons() == {"a": "LENGTH"})


async def test_sigterm_ends_the_core(ready: tuple[ProcessCoreClient, Listener]) -> None:
    client, listener = ready
    os.kill(client.process_id, signal.SIGTERM)
    assert (await listener.until_exit()).reason == "The engine process was killed by SIGTERM."


PARENT = """
import asyncio, sys
from tests.unit.native.test_core_client import Listener, make_client

async def main():
    client, listener = make_client(), Listener()
    client.start(listener)
    if sys.argv[1] == "ready":
        await listener.until_ready()
    print(client.process_id, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["starting", "ready"])
def test_the_core_ends_when_its_parent_is_killed(temporary_folder: Path, moment: str) -> None:
    environ = {**os.environ, "TMPDIR": str(temporary_folder)}
    with subprocess.Popen([sys.executable, "-c", PARENT, moment], stdout=subprocess.PIPE, env=environ) as parent:
        assert parent.stdout is not None
        core = identify(int(parent.stdout.readline()))
        parent.kill()
    assert core is not None
    assert wait_for_end(core, WAIT_S)
    if moment == "ready":
        assert entries(temporary_folder) == []


@pytest.mark.promise("ENG-3")
async def test_an_idle_core_uses_next_to_no_cpu(ready: tuple[ProcessCoreClient, Listener]) -> None:
    client, listener = ready
    client.add_requests([request("a")])
    await listener.until(lambda: bool(listener.finish_reasons()))
    process = psutil.Process(client.process_id)
    before = sum(process.cpu_times()[:2]) + sum(psutil.Process().cpu_times()[:2])
    silence = asyncio.Event()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(silence.wait(), 2.0)
    used_s = sum(process.cpu_times()[:2]) + sum(psutil.Process().cpu_times()[:2]) - before
    assert used_s <= 0.1


def test_the_front_does_not_import_torch() -> None:
    modules = (
        "vllm_mxext, vllm_mxext.native.core_client, vllm_mxext.native.core_process, vllm_mxext.engine.backends.native, "
        "vllm_mxext.engine.async_llm_engine, vllm_mxext.engine.llm_engine, vllm_mxext.entrypoints.llm, "
        "vllm_mxext.tokenizer.loading, vllm_mxext.config.resolve"
    )
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
