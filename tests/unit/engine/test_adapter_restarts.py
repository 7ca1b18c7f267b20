"""Loads at once, loads that outlive their callers and their cores, and what a new core is told of adapters."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.engine.conftest import (
    SOURCE,
    Harness,
    expected,
    is_given_back,
    lora_cores,
    make_request,
    read,
    with_adapter,
)
from vllm_mxext.engine.backends.native import NativeClientOptions
from vllm_mxext.engine.client import AdapterSource, EnginePhase
from vllm_mxext.engine.supervisor import RestartPolicy
from vllm_mxext.errors import AdapterError, AdapterNotFoundError, EngineDeadError, MxError
from vllm_mxext.native.core_client import CoreExit
from vllm_mxext.requests import GenerateRequest

Start = Callable[..., Any]


@pytest.mark.promise("LORA-11")
async def test_what_happens_to_one_name_happens_one_after_the_other(start: Start) -> None:
    harness = await start(lora_cores())
    client, core = harness.client, harness.cores.current
    core.adapters.is_held = True
    loads = [
        asyncio.ensure_future(client.load_adapter(SOURCE)),
        asyncio.ensure_future(client.load_adapter(SOURCE)),
        asyncio.ensure_future(client.load_adapter(AdapterSource("a", "/b"), replaces=True)),
        asyncio.ensure_future(client.unload_adapter("a")),
        asyncio.ensure_future(client.load_adapter(AdapterSource("b", "/b"))),
    ]
    await harness.until(lambda: len(core.adapters.asked) == 2)
    assert {spec.name for spec in core.adapters.asked} == {"a", "b"}
    core.adapters.is_held = False
    core.adapters.release()
    infos = await asyncio.gather(*loads)
    assert [(info.name, info.generation) for info in infos] == [("a", 1), ("a", 1), ("a", 2), ("a", 2), ("b", 1)]
    assert core.adapters.dropped == [(1, 1), (1, 2)]
    assert [info.name for info in client.adapters] == ["b"]


async def test_a_load_goes_on_when_its_caller_leaves(start: Start) -> None:
    harness = await start(lora_cores())
    core = harness.cores.current
    core.adapters.is_held = True
    loading = asyncio.ensure_future(harness.client.load_adapter(SOURCE))
    await harness.until(lambda: bool(core.adapters.asked))
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    core.adapters.release()
    await harness.until(lambda: bool(harness.client.adapters))
    assert (await harness.outputs(with_adapter()))[-1].finished


async def test_loading_waits_for_an_engine_that_is_ready(start: Start) -> None:
    harness = await start(lora_cores(), is_ready=False)
    assert harness.client.status.phase is EnginePhase.STARTING
    assert (await harness.client.load_adapter(SOURCE)).name == "a"
    assert harness.client.status.phase is EnginePhase.READY
    harness.cores.current.die()
    assert harness.client.status.phase is EnginePhase.RESTARTING
    assert (await harness.client.load_adapter(AdapterSource("b", "/b"))).name == "b"


async def test_a_start_that_fails_ends_what_waits_for_it(start: Start) -> None:
    harness = await start(lora_cores(start_failures=[CoreExit("shapes differ")]), is_ready=False)
    with pytest.raises(EngineDeadError, match="shapes differ"):
        await harness.client.load_adapter(SOURCE)


@pytest.mark.promise("LORA-13")
async def test_a_load_in_flight_is_asked_again_of_the_next_core(start: Start) -> None:
    harness = await start(lora_cores())
    first = harness.cores.current
    first.adapters.is_held = True
    loading = asyncio.ensure_future(harness.client.load_adapter(SOURCE))
    await harness.until(lambda: bool(first.adapters.asked))
    first.die()
    assert harness.client.adapters == ()
    assert (await loading).name == "a"
    assert [core.adapters.asked for core in harness.cores.cores] == [first.adapters.asked] * 2
    assert (await harness.outputs(with_adapter()))[-1].finished


@pytest.mark.promise("LORA-13")
async def test_an_adapter_that_kills_cores_is_given_up_and_the_engine_is_not(start: Start) -> None:
    options = NativeClientOptions(restart=RestartPolicy(first_backoff_s=0.0, max_idle_deaths=2))
    harness = await start(lora_cores(), options=options)
    for _ in range(3):
        num_cores = len(harness.cores.cores) - 1
        loading = asyncio.ensure_future(harness.client.load_adapter(SOURCE))
        for i in range(2):
            await harness.until(lambda i=i, first=num_cores: len(harness.cores.cores) > first + i)
            core = harness.cores.current
            core.adapters.is_held = True
            await harness.until(lambda core=core: bool(core.adapters.asked))
            core.die()
        with pytest.raises(AdapterError, match="died twice while it read '/a'"):
            await loading
        await harness.until(lambda: harness.client.status.phase is EnginePhase.READY)
    assert harness.client.adapters == ()
    assert (await harness.outputs(make_request()))[-1].finished


@pytest.mark.promise("LORA-13")
async def test_a_new_core_knows_all_adapters_in_use_before_it_gets_a_request(harness: Harness) -> None:
    client, files = harness.client, harness.files
    await client.load_adapter(AdapterSource("pinned", "/b"), pins=True)
    old = await client.generate(with_adapter("old", max_tokens=60))
    await anext(old)
    harness.cores.current.freeze()
    files.contents["/a"] = "changed"
    await client.load_adapter(SOURCE, replaces=True)
    new = await client.generate(with_adapter("new", max_tokens=60))
    await client.load_adapter(AdapterSource("gone", "/b"))
    await client.unload_adapter("gone")
    await harness.kill_core()
    finished = await asyncio.gather(read(old), read(new))
    added = harness.cores.current.adapters.added
    assert [(spec.name, spec.generation, spec.fingerprint, reads) for spec, reads in added] == [
        ("a", 1, "one", False),
        ("pinned", 1, "two", True),
        ("a", 2, "changed", False),
    ]
    assert [outputs[-1].metrics.num_restarts for outputs in finished] == [1, 1]
    await harness.until(lambda: harness.cores.current.adapters.dropped == [(1, 1)])


@pytest.mark.promise("LORA-13")
async def test_streams_with_adapters_survive_deaths_in_every_step(harness: Harness) -> None:
    request = with_adapter(max_tokens=25)
    serving = asyncio.ensure_future(harness.tokens(request))
    while not serving.done():
        await harness.until(lambda: serving.done() or harness.cores.current.num_steps >= 1)
        await harness.kill_core()
    assert serving.result() == expected(request, harness.cores.config)
    await harness.until(lambda: harness.client.status.phase is EnginePhase.READY)
    assert await is_given_back(harness)


async def test_a_dead_core_holds_no_adapters(harness: Harness) -> None:
    harness.cores.current.die()
    (info,) = harness.client.adapters
    assert (info.tier, info.num_bytes) == ("disk", 0)


async def test_shutting_down_ends_what_is_being_loaded(start: Start) -> None:
    harness = await start(lora_cores())
    core = harness.cores.current
    core.adapters.is_held = True
    loading = asyncio.ensure_future(harness.client.load_adapter(SOURCE))
    await harness.until(lambda: bool(core.adapters.asked))
    await harness.client.shutdown()
    with pytest.raises((EngineDeadError, asyncio.CancelledError)):
        await loading


async def use_and_leave(harness: Harness, request: GenerateRequest, num_outputs: int) -> None:
    """Serves a request, or leaves it after a few outputs; its adapter may not be there."""
    try:
        stream = await harness.client.generate(request)
    except AdapterNotFoundError:
        return
    for _ in range(num_outputs):
        if await anext(stream, None) is None:
            break
    await stream.aclose()


@pytest.mark.promise("LORA-12", "LORA-13")
@pytest.mark.parametrize("seed", range(8))
async def test_after_any_history_nothing_is_left_and_nothing_was_taken_from_a_request(start: Start, seed: int) -> None:
    draw = random.Random(seed)
    options = NativeClientOptions(restart=RestartPolicy(first_backoff_s=0.0, max_idle_deaths=1000))
    harness = await start(lora_cores(), options=options)
    client, names = harness.client, ["a", "b", "c"]
    work: list[asyncio.Future[Any]] = []
    for number in range(80):
        name, action = draw.choice(names), draw.randrange(10)
        if action < 2:
            harness.files.contents["/a"] = draw.choice("xyz")
            source = AdapterSource(name, "/a")
            loading = client.load_adapter(source, replaces=draw.random() < 0.8, pins=draw.random() < 0.3)
            work.append(asyncio.ensure_future(loading))
        elif action == 2:
            work.append(asyncio.ensure_future(client.unload_adapter(name)))
        elif action == 3:
            harness.cores.current.die()
        else:
            request = replace(make_request(str(number), max_tokens=draw.randrange(1, 30)), adapter=name)
            work.append(asyncio.ensure_future(use_and_leave(harness, request, draw.randrange(1, 30))))
        for _ in range(draw.randrange(6)):
            await asyncio.sleep(0)
    results = await asyncio.gather(*work, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    assert [error for error in errors if not isinstance(error, MxError)] == []
    await harness.until(lambda: client.status.phase is EnginePhase.READY)
    for info in client.adapters:
        await client.unload_adapter(info.name)
    await harness.until(lambda: not harness.cores.current.adapters.known)
    assert client._adapters._registry.specs == []
