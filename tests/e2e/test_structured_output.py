"""Structured output through real processes: absurd grammars beside a stream, and an engine killed in the middle."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.held_core_process import Hold
from vllm_mxext.constraint_params import StructuredOutputsParams
from vllm_mxext.engine.backends.native import NativeEngineClient
from vllm_mxext.engine.engine_args import EngineArgs
from vllm_mxext.errors import GenerationError, InvalidRequestError
from vllm_mxext.requests import GenerateRequest, TextPrompt
from vllm_mxext.sampling_params import OutputKind, SamplingParams
from vllm_mxext.tokenizer.loading import load_tokenizer

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NUM_FUZZED = int(os.environ.get("STRUCTURED_FUZZ", "60"))
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 20, "maxLength": 30},
        "values": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 9999},
            "minItems": 8,
            "maxItems": 12,
        },
    },
    "required": ["title", "values"],
    "additionalProperties": False,
}


@pytest.fixture
def hold(tmp_path: Path) -> Hold:
    return Hold(tmp_path / "hold")


@pytest.fixture
async def client(hold: Hold) -> AsyncIterator[NativeEngineClient]:
    config = EngineArgs(max_num_batched_tokens=128, max_num_seqs=6, num_threads=1).resolve()
    tokenizer = load_tokenizer(config.engine.model.tokenizer_path)
    client = NativeEngineClient(config.engine, config.frontend, tokenizer, spawn=hold.spawner(config.engine))
    await client.start()
    await client.wait_until_ready()
    yield client
    await client.shutdown()


async def serve(
    client: NativeEngineClient, name: str, params: SamplingParams, seen: asyncio.Event | None = None
) -> Any:
    """Returns text, token ids and finish reason of a request's only sample."""
    text, token_ids, reason = "", [], None
    async for output in await client.generate(GenerateRequest(name, TextPrompt("Write something:"), params)):
        for sample in output.outputs:
            text += sample.text
            token_ids += sample.token_ids
            reason = sample.finish_reason or reason
        if seen is not None and len(token_ids) > 8:
            seen.set()
    return text, token_ids, reason


def sampling(constraint: dict[str, Any] | None, **values: Any) -> SamplingParams:
    structured = None if constraint is None else StructuredOutputsParams(**constraint)
    return SamplingParams(
        temperature=1.0, output_kind=OutputKind.DELTA, structured_outputs=structured, **{"seed": 5, **values}
    )


def fuzzed(draw: random.Random) -> dict[str, Any]:
    """A constraint that may be good, malformed or absurd."""
    letters = "".join(draw.choices("ab(|)*+?[]{}1,\\.^$\n/é", k=draw.randint(1, 30)))
    keys = ["type", "enum", "items", "minLength", "pattern", "allOf", "oneOf", "$ref", "properties", "not", "format"]
    values: list[Any] = ["string", "object", 3, -1, [], {}, ["a"], [{"type": "integer"}], {"a": {}}, "#", "#/x", True]
    depth = draw.choice((50, 200, 3_000))
    chain = {f"d{i}": {"properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(depth)}
    return draw.choice(
        (
            {"regex": letters},
            {"grammar": f"start: {letters}"},
            {"grammar": f"root ::= {letters}"},
            {"json": {key: draw.choice(values) for key in draw.sample(keys, 3)}},
            {"json": {"$defs": {**chain, f"d{depth}": {}}, "$ref": "#/$defs/d0"}},
            {"grammar": "start: r0\n" + "\n".join(f"r{i}: r{i + 1} r{i + 1}" for i in range(50)) + '\nr50: "x"'},
            {"regex": "(" * depth + "a" + ")" * depth},
            {"structural_tag": {"triggers": [letters], "structures": [{"begin": letters, "schema": {}, "end": "x"}]}},
            {"choice": [letters, letters]},
        )
    )


async def attempt(client: NativeEngineClient, name: str, constraint: dict[str, Any]) -> str:
    """Returns how a fuzzed request ends."""
    try:
        _, _, reason = await serve(client, name, sampling(constraint, max_tokens=16))
    except InvalidRequestError:
        return "refused"
    except GenerationError:
        return "failed"
    return str(reason)


@pytest.mark.promise("STRUCT-3", "ENG-7", "PAIN-2", "PAIN-3")
async def test_pains_2_and_3_absurd_grammars_harm_nobody_but_themselves(client: NativeEngineClient) -> None:
    steady = sampling(None, max_tokens=200, ignore_eos=True)
    undisturbed = await serve(client, "alone", steady)
    process_id = client.supervisor.core.process_id
    draw = random.Random(4)
    constraints = [fuzzed(draw) for _ in range(NUM_FUZZED)]
    tasks = [attempt(client, f"fuzz-{i}", constraint) for i, constraint in enumerate(constraints)]

    beside, *ends = await asyncio.gather(serve(client, "beside", steady), *tasks)

    assert beside == undisturbed
    assert client.supervisor.core.process_id == process_id
    assert set(ends) <= {"refused", "stop", "length", "failed"}
    assert ends.count("refused") > 0
    assert ends.count("stop") > 0


@pytest.mark.promise("STRUCT-4", "ENG-4")
async def test_json_goes_on_identically_when_the_engine_is_killed_in_the_middle(
    client: NativeEngineClient, hold: Hold
) -> None:
    params = sampling({"json": SCHEMA, "disable_any_whitespace": True}, max_tokens=400)
    undisturbed = await serve(client, "undisturbed", params)
    assert json.loads(undisturbed[0]).keys() == SCHEMA["properties"].keys()  # type: ignore[attr-defined]
    assert undisturbed[2] == "stop"
    seen = asyncio.Event()
    hold.begin(client.supervisor.core.process_id, 1, 20)
    reading = asyncio.create_task(serve(client, "killed", params, seen))
    await seen.wait()
    os.kill(client.supervisor.core.process_id, signal.SIGKILL)
    assert await reading == undisturbed
