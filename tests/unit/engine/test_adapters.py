"""The native client's adapters: loading, requests that use them, unloading, and deaths of the core in between."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.adapter_fakes import NUM_BYTES
from tests.unit.engine.conftest import (
    SOURCE,
    Harness,
    a_search,
    is_given_back,
    lora_cores,
    make_request,
    read,
    with_adapter,
)
from vllm_mxext.engine.client import AdapterInfo, AdapterSource
from vllm_mxext.errors import (
    AdapterConflictError,
    AdapterError,
    AdapterNotFoundError,
    EngineDeadError,
    InvalidRequestError,
    MxError,
    UnsupportedFeatureError,
)
from vllm_mxext.native.core_client import CoreExit
from vllm_mxext.requests import TextPrompt, TokensPrompt
from vllm_mxext.sampling_params import OutputKind

Start = Callable[..., Any]


@pytest.mark.promise("LORA-11")
async def test_a_loaded_adapter_is_told_with_how_it_stands(harness: Harness) -> None:
    (info,) = harness.client.adapters
    assert isinstance(info, AdapterInfo)
    assert info.source == AdapterSource("a", "/a", "huggingface")
    assert (info.name, info.adapter_id, info.generation) == ("a", 1, 1)
    assert (info.tier, info.num_bytes, info.num_running, info.is_pinned) == ("host", NUM_BYTES, 0, False)
    stream = await harness.client.generate(with_adapter())
    await anext(stream)
    (info,) = harness.client.adapters
    assert (info.tier, info.num_running) == ("slot", 1)
    await stream.aclose()
    assert harness.client.model.max_loras == 2


@pytest.mark.promise("LORA-12")
async def test_the_core_is_told_which_weights_a_request_means(harness: Harness) -> None:
    await harness.outputs(make_request("base"))
    await harness.outputs(with_adapter("tuned", 0.5, n=2))
    await read(await harness.client.beam_search(replace(a_search(), adapter_scale=0.0)))
    seen = {
        (each.request_id[:4], each.adapter_id, each.adapter_generation, each.adapter_scale)
        for each in harness.cores.current.received
    }
    assert seen == {("base", 0, 0, 1.0), ("tune", 1, 1, 0.5), ("s#2/", 1, 1, 0.0)}


async def test_an_unknown_adapter_is_refused_by_name_before_anything_is_tokenized(harness: Harness) -> None:
    unreadable = replace(make_request(), prompt=TokensPrompt((-1,)), adapter="b")
    with pytest.raises(AdapterNotFoundError, match="'b'"):
        await harness.client.generate(unreadable)
    with pytest.raises(AdapterNotFoundError, match="'b'"):
        await harness.client.beam_search(replace(a_search(), adapter="b"))
    with pytest.raises(AdapterNotFoundError, match="'b'"):
        await harness.client.unload_adapter("b")
    assert harness.cores.current.received == []


async def test_an_engine_without_adapters_says_how_to_get_them(start: Start) -> None:
    harness = await start()
    client = harness.client
    attempts: list[Awaitable[Any]] = [
        client.generate(with_adapter()),
        client.beam_search(a_search()),
        client.load_adapter(SOURCE),
    ]
    for attempt in attempts:
        with pytest.raises(UnsupportedFeatureError, match="--enable-lora"):
            await attempt
    with pytest.raises(AdapterNotFoundError):
        await client.unload_adapter("a")
    assert client.adapters == ()
    assert client.model.max_loras == 0


@pytest.mark.parametrize("scale", [-0.1, 16.1, float("nan"), float("inf")])
def test_a_scale_out_of_range_is_refused(scale: float) -> None:
    with pytest.raises(InvalidRequestError, match="adapter_scale"):
        with_adapter(scale=scale)
    with pytest.raises(InvalidRequestError, match="adapter_scale"):
        replace(a_search(), adapter_scale=scale)


async def test_what_cannot_be_loaded_is_not_served_and_the_reason_is_told(start: Start) -> None:
    harness = await start(lora_cores(load_errors={"a": "Tensor x is cut off."}))
    with pytest.raises(AdapterError, match="Tensor x is cut off"):
        await harness.client.load_adapter(SOURCE)
    with pytest.raises(AdapterError, match="no folder '/none'"):
        await harness.client.load_adapter(AdapterSource("b", "/none"))
    with pytest.raises(AdapterConflictError, match="The model"):
        await harness.client.load_adapter(AdapterSource(harness.client.model.served_names[0], "/a"))
    assert harness.client.adapters == ()
    assert len(harness.cores.current.adapters.asked) == 1


async def test_a_replacement_that_fails_leaves_the_old_adapter(harness: Harness) -> None:
    harness.cores.load_errors["a"] = "It is cut off."
    with pytest.raises(AdapterError):
        await harness.client.load_adapter(AdapterSource("a", "/b"), replaces=True)
    assert harness.client.adapters[0].generation == 1
    assert await is_given_back(harness)


async def test_files_are_looked_at_in_a_thread(start: Start) -> None:
    harness = await start(lora_cores())
    threads = []
    inspect = harness.files.inspect

    def note(source: AdapterSource) -> Any:
        threads.append(threading.current_thread())
        return inspect(source)

    harness.client._adapters._inspect = note
    await harness.client.load_adapter(SOURCE)
    assert threads != [threading.main_thread()]


@pytest.mark.promise("LORA-11")
async def test_loading_again_reaches_the_core_only_for_another_pin(harness: Harness) -> None:
    asked = harness.cores.current.adapters.asked
    first = harness.client.adapters[0]
    assert await harness.client.load_adapter(SOURCE) == first
    assert len(asked) == 1
    assert (await harness.client.load_adapter(SOURCE, pins=True)).is_pinned
    assert [(spec.generation, spec.is_pinned) for spec in asked] == [(1, False), (1, True)]
    with pytest.raises(AdapterConflictError, match="load_inplace"):
        await harness.client.load_adapter(AdapterSource("a", "/b"))


@pytest.mark.promise("LORA-12")
async def test_open_streams_keep_the_old_weights_of_a_replaced_adapter(harness: Harness) -> None:
    core = harness.cores.current
    stream = await harness.client.generate(with_adapter("old", max_tokens=40))
    await anext(stream)
    core.freeze()
    harness.files.contents["/a"] = "changed"
    info = await harness.client.load_adapter(SOURCE, replaces=True)
    assert (info.adapter_id, info.generation) == (1, 2)
    new = await harness.client.generate(with_adapter("new"))
    assert [each.adapter_generation for each in core.received] == [1, 2]
    assert core.adapters.dropped == []
    core.thaw()
    await read(new)
    await read(stream)
    await harness.until(lambda: core.adapters.dropped == [(1, 1)])


@pytest.mark.promise("LORA-12")
async def test_an_unloaded_name_is_gone_at_once_and_its_weights_after_the_last_request(harness: Harness) -> None:
    core = harness.cores.current
    streams = [await harness.client.generate(with_adapter(name, max_tokens=30)) for name in ("x", "y")]
    assert (await harness.client.unload_adapter("a")).name == "a"
    with pytest.raises(AdapterNotFoundError):
        await harness.client.generate(with_adapter())
    assert harness.client.adapters == ()
    await streams[0].aclose()
    await asyncio.sleep(0)
    assert core.adapters.dropped == []
    await read(streams[1])
    await harness.until(lambda: core.adapters.dropped == [(1, 1)])
    assert (await harness.client.load_adapter(SOURCE)).adapter_id == 2


async def finish(harness: Harness) -> None:
    await harness.outputs(with_adapter())


async def finish_samples(harness: Harness) -> None:
    await harness.outputs(with_adapter(n=3, best_of=4, output_kind=OutputKind.FINAL_ONLY))


async def stop_string(harness: Harness) -> None:
    await harness.outputs(with_adapter(stop=["a", "b", "c", "d", "e"], max_tokens=200))


async def abort(harness: Harness) -> None:
    stream = await harness.client.generate(with_adapter(n=2))
    await anext(stream)
    await harness.client.abort(["r", "r"])
    await read(stream)


async def abort_while_tokenized(harness: Harness) -> None:
    request = replace(with_adapter(), prompt=TextPrompt("hello"))
    arriving = asyncio.ensure_future(harness.client.generate(request))
    await asyncio.sleep(0)
    await harness.client.abort(["r"])
    await read(await arriving)


async def be_invalid(harness: Harness) -> None:
    with pytest.raises(InvalidRequestError):
        await harness.client.generate(with_adapter(logprobs=99))


async def be_cancelled_while_tokenized(harness: Harness) -> None:
    arriving = asyncio.ensure_future(harness.client.generate(replace(with_adapter(), prompt=TextPrompt("hello"))))
    await asyncio.sleep(0)
    arriving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await arriving


async def leave(harness: Harness) -> None:
    stream = await harness.client.generate(with_adapter())
    await stream.aclose()
    await stream.aclose()


async def run_out_of_time(harness: Harness) -> None:
    harness.cores.current.freeze()
    with pytest.raises(MxError):
        await read(await harness.client.generate(replace(with_adapter(), timeout_s=1e-6)))
    harness.cores.current.thaw()


async def kill_the_core(harness: Harness) -> None:
    harness.cores.lethal = lambda names: "r" in names
    with pytest.raises(MxError):
        await harness.outputs(with_adapter())


async def fail(harness: Harness) -> None:
    harness.cores.nan_ids.add("r")
    with pytest.raises(MxError):
        await harness.outputs(with_adapter())


async def search(harness: Harness) -> None:
    await read(await harness.client.beam_search(a_search()))


async def abort_search(harness: Harness) -> None:
    stream = await harness.client.beam_search(a_search(max_tokens=100))
    await harness.until(lambda: bool(harness.cores.current.received))
    await harness.client.abort(["s"])
    await read(stream)


async def leave_search_at_once(harness: Harness) -> None:
    await (await harness.client.beam_search(a_search())).aclose()


async def be_invalid_search(harness: Harness) -> None:
    with pytest.raises(InvalidRequestError):
        await harness.client.beam_search(a_search(max_tokens=10_000))


ENDS = [
    finish,
    finish_samples,
    stop_string,
    abort,
    abort_while_tokenized,
    be_invalid,
    be_cancelled_while_tokenized,
    leave,
    run_out_of_time,
    kill_the_core,
    fail,
    search,
    abort_search,
    leave_search_at_once,
    be_invalid_search,
]


@pytest.mark.promise("LORA-12")
@pytest.mark.parametrize("end", ENDS)
async def test_every_end_of_a_request_gives_its_adapter_back(
    harness: Harness, end: Callable[[Harness], Awaitable[None]]
) -> None:
    await end(harness)
    assert await is_given_back(harness)


@pytest.mark.promise("LORA-12")
async def test_the_end_of_the_engine_gives_all_adapters_back(start: Start) -> None:
    harness = await start(lora_cores(start_failures=[None, *[CoreExit("no memory")] * 4]))
    await harness.client.load_adapter(SOURCE)
    streams = [await harness.client.generate(with_adapter(name, n=2)) for name in ("x", "y")]
    searching = await harness.client.beam_search(a_search())
    harness.cores.current.die()
    for stream in (*streams, searching):
        with pytest.raises(EngineDeadError):
            await read(stream)
    await harness.client.unload_adapter("a")
    assert harness.client._adapters._registry.specs == []
    with pytest.raises(EngineDeadError, match="no memory"):
        await harness.client.load_adapter(SOURCE)
