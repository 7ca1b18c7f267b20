"""The engine process is killed with SIGKILL in mid-stream; every stream goes on as if nothing had happened.

`KILL_TEST_REPEATS` sets how often (2 by default), `KILL_TEST_MODEL` the checkpoint (a tiny random model by default).
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.engine_fakes import write_tiny_checkpoint
from tests.held_core_process import Hold
from vllm_mxext.engine.backends.native import NativeEngineClient
from vllm_mxext.engine.engine_args import EngineArgs
from vllm_mxext.outputs import PositionLogprobs
from vllm_mxext.requests import GenerateRequest, TextPrompt
from vllm_mxext.sampling_params import OutputKind, SamplingParams
from vllm_mxext.tokenizer.loading import load_tokenizer

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.promise("ENG-4")]

NUM_REPEATS = int(os.environ.get("KILL_TEST_REPEATS", "2"))
MODEL = os.environ.get("KILL_TEST_MODEL")
NUM_STREAMS = 8
MAX_TOKENS = 160
TOKENS_UNTIL_HELD = 10
"""The engine is killed while it computes, if this process comes in time."""

PREFIX = "The engine keeps what it has computed, and a stream goes on where it stopped. "
VARIANTS: tuple[dict[str, object], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 11},
    {"temperature": 0.0, "repetition_penalty": 1.2, "frequency_penalty": 0.1},
    {"temperature": 0.8, "seed": 12, "top_p": 0.9, "top_k": 50},
    {"temperature": 0.0, "min_tokens": 100},
    {"temperature": 1.3, "seed": 13, "min_p": 0.02, "presence_penalty": 0.5},
    {"temperature": 0.0, "stop": ["never to be seen"]},
    {"temperature": 1.0, "seed": 14, "logprobs": 5},
)


@dataclass
class Stream:
    """What a client has received of one stream."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    ends: list[tuple[object, object]] = field(default_factory=list)


def make_request(index: int, run: str) -> GenerateRequest:
    params = SamplingParams(
        **{
            "max_tokens": MAX_TOKENS + index,
            "ignore_eos": True,
            "logprobs": 1,
            "output_kind": OutputKind.DELTA,
            **VARIANTS[index],
        }
    )
    return GenerateRequest(f"{run}-{index}", TextPrompt(PREFIX * (index % 4) + f"Stream {index}:"), params)


async def read(client: NativeEngineClient, request: GenerateRequest, stream: Stream, progress: asyncio.Event) -> None:
    async for output in await client.generate(request):
        for sample in output.outputs:
            stream.text += sample.text
            stream.token_ids += sample.token_ids
            stream.logprobs += sample.logprobs or []
            if sample.finish_reason is not None:
                stream.ends.append((sample.finish_reason, sample.stop_reason))
        progress.set()


async def serve(client: NativeEngineClient, hold: Hold, run: str, kill_at: int | None = None) -> list[Stream]:
    """Serves all streams at once; kills the engine when one of them has `kill_at` tokens."""
    streams, progress = [Stream() for _ in range(NUM_STREAMS)], asyncio.Event()
    if kill_at is not None:
        hold.begin(client.supervisor.core.process_id, NUM_STREAMS, kill_at + TOKENS_UNTIL_HELD)
    reading = asyncio.gather(*(read(client, make_request(i, run), streams[i], progress) for i in range(NUM_STREAMS)))
    while kill_at is not None:
        await progress.wait()
        progress.clear()
        if any(len(stream.token_ids) >= kill_at for stream in streams):
            os.kill(client.supervisor.core.process_id, signal.SIGKILL)
            kill_at = None
    await reading
    return streams


@pytest.fixture
def hold(tmp_path: Path) -> Hold:
    return Hold(tmp_path / "hold")


@pytest.fixture
async def client(tmp_path: Path, hold: Hold) -> AsyncIterator[NativeEngineClient]:
    model = MODEL or str(write_tiny_checkpoint(tmp_path / "model"))
    load_format = "auto" if MODEL else "dummy"
    config = EngineArgs(
        model=model, load_format=load_format, max_num_batched_tokens=128, max_num_seqs=6, num_threads=1
    ).resolve()
    tokenizer = load_tokenizer(config.engine.model.tokenizer_path)
    client = NativeEngineClient(config.engine, config.frontend, tokenizer, spawn=hold.spawner(config.engine))
    await client.start()
    await client.wait_until_ready()
    yield client
    await client.shutdown()


@pytest.mark.timeout(900 + 60 * NUM_REPEATS)
async def test_eight_streams_survive_the_death_of_the_engine_token_for_token(
    client: NativeEngineClient, hold: Hold
) -> None:
    undisturbed = await serve(client, hold, "undisturbed")
    assert [len(stream.token_ids) for stream in undisturbed] == [MAX_TOKENS + i for i in range(NUM_STREAMS)]
    assert len({tuple(stream.token_ids[:50]) for stream in undisturbed}) == NUM_STREAMS
    info = client.supervisor.info
    assert info is not None
    kill_points = random.Random(1)
    for repeat in range(NUM_REPEATS):
        killed = client.supervisor.core.process_id
        disturbed = await serve(client, hold, f"killed-{repeat}", kill_points.randrange(1, MAX_TOKENS - 20))
        assert client.supervisor.core.process_id != killed
        assert [stream.ends for stream in disturbed] == [[("length", None)]] * NUM_STREAMS
        assert [len(stream.token_ids) for stream in disturbed] == [MAX_TOKENS + i for i in range(NUM_STREAMS)]
        if info.is_batch_invariant:
            assert disturbed == undisturbed
