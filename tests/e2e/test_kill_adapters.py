"""The engine process is killed while streams of adapters and of the base model are open and an adapter is replaced."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.held_core_process import Hold
from vllm_mxext.builtin import adapter_path
from vllm_mxext.engine.backends.native import NativeEngineClient
from vllm_mxext.engine.client import AdapterSource
from vllm_mxext.engine.engine_args import EngineArgs
from vllm_mxext.errors import GenerationError
from vllm_mxext.native.core_messages import AdapterSpec
from vllm_mxext.requests import GenerateRequest, TextPrompt
from vllm_mxext.sampling_params import OutputKind, SamplingParams
from vllm_mxext.tokenizer.loading import load_tokenizer

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.promise("ENG-4", "LORA-12", "LORA-13")]

MAX_TOKENS = 150
KILL_AT = 40
HELD_AT = 80
"""Tokens of a stream with which the engine waits for its death, so that all streams are open then."""

PROMPT = "Anna has 12 birds and buys 30 more. Tom has 4 boxes with 7 books in each box. How many"
VARIANTS: tuple[dict[str, object], ...] = ({"temperature": 0.0}, {"temperature": 0.9, "seed": 5, "top_k": 40})


@dataclass
class Stream:
    """What a client has received of one stream."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    end: object = None
    error: str = ""


class Talk:
    """Streams of one client, all open at once."""

    def __init__(self, client: NativeEngineClient) -> None:
        self.client = client
        self.streams: dict[str, Stream] = {}
        self._progress = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def open(self, run: str, *adapters: str | None) -> None:
        """Begins every variant with each of these adapters."""
        for adapter in adapters:
            for index, variant in enumerate(VARIANTS):
                name = f"{adapter}-{index}"
                stream = self.streams[name] = Stream()
                fields = {"max_tokens": MAX_TOKENS, "ignore_eos": True, "output_kind": OutputKind.DELTA, **variant}
                request = GenerateRequest(
                    f"{run}-{name}", TextPrompt(PROMPT), SamplingParams(**fields), adapter=adapter
                )
                self._tasks.append(asyncio.create_task(self._read(request, stream)))

    async def wait_for_tokens(self, count: int) -> None:
        """Returns when every stream has so many tokens."""
        while min(len(stream.token_ids) for stream in self.streams.values()) < count:
            await self._progress.wait()
            self._progress.clear()

    async def finish(self) -> dict[str, Stream]:
        """Returns the streams when all have ended."""
        await asyncio.gather(*self._tasks)
        return self.streams

    async def _read(self, request: GenerateRequest, stream: Stream) -> None:
        try:
            async for output in await self.client.generate(request):
                (sample,) = output.outputs
                stream.text += sample.text
                stream.token_ids += tuple(sample.token_ids)
                stream.end = sample.finish_reason
                self._progress.set()
        except GenerationError as error:
            stream.error = str(error)


@pytest.fixture
def hold(tmp_path: Path) -> Hold:
    return Hold(tmp_path / "hold")


@pytest.fixture
async def client(hold: Hold) -> AsyncIterator[NativeEngineClient]:
    config = EngineArgs(enable_lora=True, max_loras=4, max_num_seqs=8, num_threads=1).resolve()
    tokenizer = load_tokenizer(config.engine.model.tokenizer_path)
    client = NativeEngineClient(config.engine, config.frontend, tokenizer, spawn=hold.spawner(config.engine))
    await client.start()
    await client.wait_until_ready()
    for name in ("math_tuned", "code_tuned"):
        await client.load_adapter(AdapterSource(name, str(adapter_path(name))))
    yield client
    await client.shutdown()


def write_stronger(folder: Path, alpha: int) -> Path:
    """Writes `math_tuned` with another strength."""
    shutil.copytree(adapter_path("math_tuned"), folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": alpha}))
    return folder


def kill_core(client: NativeEngineClient) -> None:
    os.kill(client.supervisor.core.process_id, signal.SIGKILL)


def kill_core_when_it_is_asked_to_read(client: NativeEngineClient, monkeypatch: pytest.MonkeyPatch) -> None:
    core = client.supervisor.core
    load_adapter = core.load_adapter

    async def load_and_kill(spec: AdapterSpec) -> bool:
        answer = asyncio.ensure_future(load_adapter(spec))
        await asyncio.sleep(0)
        kill_core(client)
        return await answer

    monkeypatch.setattr(core, "load_adapter", load_and_kill)


async def undisturbed(client: NativeEngineClient, run: str, *adapters: str | None) -> dict[str, Stream]:
    talk = Talk(client)
    talk.open(run, *adapters)
    return await talk.finish()


async def replace_and_kill(
    client: NativeEngineClient, hold: Hold, new: AdapterSource, moment: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Stream], dict[str, Stream]]:
    """Returns streams that were open when the engine was killed, and those of the new weights."""
    await client.reset_prefix_cache()
    talk, later = Talk(client), Talk(client)
    killed = client.supervisor.core.process_id
    hold.begin(killed, 3 * len(VARIANTS), HELD_AT)
    talk.open(f"disturbed {moment}", None, "math_tuned", "code_tuned")
    await talk.wait_for_tokens(KILL_AT)
    if moment == "while it reads":
        kill_core_when_it_is_asked_to_read(client, monkeypatch)
    elif moment == "before it is asked":
        kill_core(client)
    await client.load_adapter(new, replaces=True)
    if moment == "after it has read":
        kill_core(client)
    later.open(f"later {moment}", "math_tuned")
    streams = await talk.finish(), await later.finish()
    assert client.supervisor.core.process_id != killed
    return streams


async def test_streams_go_on_with_the_weights_that_they_began_with(
    client: NativeEngineClient, hold: Hold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = AdapterSource("math_tuned", str(adapter_path("math_tuned")))
    new = AdapterSource("math_tuned", str(write_stronger(tmp_path / "new", 48)))
    await client.load_adapter(replace(new, name="new"))
    expected = await undisturbed(client, "before", None, "math_tuned", "code_tuned", "new")
    assert expected["new-0"] != expected["math_tuned-0"] != expected["None-0"]
    assert all(len(stream.token_ids) == MAX_TOKENS for stream in expected.values())
    await client.unload_adapter("new")
    of_new = [expected.pop(f"new-{index}") for index in range(len(VARIANTS))]

    for moment in ("before it is asked", "while it reads", "after it has read"):
        streams, later = await replace_and_kill(client, hold, new, moment, monkeypatch)
        assert streams == expected, moment
        assert list(later.values()) == of_new, moment
        await client.load_adapter(old, replaces=True)


async def test_a_stream_whose_adapter_was_written_over_fails_by_name_and_the_others_go_on(
    client: NativeEngineClient, hold: Hold, tmp_path: Path
) -> None:
    folder = write_stronger(tmp_path / "live", 20)
    live = AdapterSource("live", str(folder))
    await client.load_adapter(live)
    expected = await undisturbed(client, "before", None, "code_tuned")
    talk, later = Talk(client), Talk(client)
    hold.begin(client.supervisor.core.process_id, 3 * len(VARIANTS), HELD_AT)
    talk.open("disturbed", None, "live", "code_tuned")
    await talk.wait_for_tokens(KILL_AT)
    shutil.rmtree(folder)
    write_stronger(folder, 48)
    await client.load_adapter(live, replaces=True)
    kill_core(client)
    streams = await talk.finish()
    later.open("later", "live")

    for index in range(len(VARIANTS)):
        assert "have changed since it was loaded" in streams.pop(f"live-{index}").error
    assert streams == expected
    assert all(stream.end is not None for stream in (await later.finish()).values())
    (entry,) = [info for info in client.adapters if info.name == "live"]
    assert (entry.generation, entry.num_running) == (2, 0)
