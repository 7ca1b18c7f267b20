"""What happens to open requests when cores die, and when there will be no other core."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.engine_fakes import LoopCores, name_of
from tests.unit.engine.conftest import Harness, expected, make_request
from vllm_mxext.engine.backends.native import NativeClientOptions
from vllm_mxext.engine.client import EnginePhase
from vllm_mxext.engine.supervisor import RestartPolicy
from vllm_mxext.errors import EngineDeadError, GenerationError
from vllm_mxext.native.core_client import CoreExit
from vllm_mxext.requests import GenerateRequest
from vllm_mxext.sampling_params import OutputKind

Start = Callable[..., Any]


async def serve(harness: Harness, requests: list[GenerateRequest]) -> list[Any]:
    """Serves requests at once; a failed one gives its exception."""
    return await asyncio.gather(*(harness.tokens(request) for request in requests), return_exceptions=True)


@pytest.mark.promise("ENG-4")
@pytest.mark.parametrize("num_steps", [1, 2, 7, 15])
async def test_streams_continue_with_the_same_tokens_when_the_core_dies(start: Start, num_steps: int) -> None:
    harness = await start()
    requests = [make_request(str(i), "x" * (3 * i + 1), seed=i, max_tokens=20 + i) for i in range(8)]
    serving = asyncio.gather(*(harness.outputs(request) for request in requests))
    core = harness.cores.current
    await harness.until(lambda: core.num_steps >= num_steps)
    core.die()
    for request, outputs in zip(requests, await serving, strict=True):
        tokens = [token_id for output in outputs for token_id in output.outputs[0].token_ids]
        assert tokens == expected(request, harness.cores.config)
        assert outputs[-1].metrics.num_restarts == 1
    assert len(harness.cores.cores) == 2


@pytest.mark.promise("ENG-4")
async def test_text_logprobs_and_samples_survive_deaths_in_every_step(start: Start) -> None:
    request = make_request(n=3, logprobs=2, stop=["dc"], max_tokens=40, output_kind=OutputKind.FINAL_ONLY)
    calm = await start()
    (undisturbed,) = await calm.outputs(request)
    harness = await start()
    serving = asyncio.ensure_future(harness.outputs(request))
    while not serving.done():
        await harness.until(lambda: serving.done() or harness.cores.current.num_steps >= 2)
        await harness.kill_core()
    (output,) = serving.result()
    assert len(harness.cores.cores) > 5
    assert output.outputs == undisturbed.outputs
    assert output.num_cached_tokens == undisturbed.num_cached_tokens


async def test_the_core_gets_only_unfinished_requests_again_and_with_their_tokens(start: Start) -> None:
    harness = await start()
    short = make_request("short", max_tokens=2)
    long = asyncio.ensure_future(harness.tokens(make_request("long", max_tokens=30)))
    await harness.tokens(short)
    delivered = harness.client._outputs.open_core_requests()[0].output_token_ids
    harness.cores.current.die()
    await long
    (again,) = harness.cores.current.received
    assert name_of(again.request_id) == "long"
    assert again.output_token_ids == delivered
    assert delivered


async def test_requests_are_accepted_while_restarting_and_served_after(start: Start) -> None:
    harness = await start()
    harness.cores.current.die()
    assert harness.client.status.phase is EnginePhase.RESTARTING
    request = make_request()
    assert await harness.tokens(request) == expected(request, harness.cores.config)
    assert harness.client.status.phase is EnginePhase.READY


async def test_a_failed_first_start_is_final_and_says_why(start: Start) -> None:
    cores = LoopCores(start_failures=[CoreExit("ValueError: shapes differ")])
    harness = await start(cores, is_ready=False)
    with pytest.raises(EngineDeadError, match="ValueError: shapes differ"):
        await harness.client.wait_until_ready()
    with pytest.raises(EngineDeadError, match="shapes differ"):
        await harness.client.check_health()
    with pytest.raises(EngineDeadError, match="shapes differ"):
        await harness.client.generate(make_request())
    assert len(cores.cores) == 1


async def test_a_restart_may_fail_a_few_times(start: Start) -> None:
    failure = CoreExit("no memory")
    cores = LoopCores(start_failures=[None, failure, failure, failure])
    harness = await start(cores)
    cores.current.die()
    request = make_request()
    assert await harness.tokens(request) == expected(request, cores.config)


async def test_a_restart_that_keeps_failing_ends_every_request_with_the_root_cause(start: Start) -> None:
    cores = LoopCores(start_failures=[None, *[CoreExit("no memory")] * 4])
    harness = await start(cores)
    serving = asyncio.ensure_future(serve(harness, [make_request("a"), make_request("b")]))
    await harness.until(lambda: len(cores.current.received) == 2)
    cores.current.die()
    for error in await serving:
        assert isinstance(error, EngineDeadError)
        assert "no memory" in str(error)
    assert harness.client.status.phase is EnginePhase.DEAD


async def test_a_restart_refused_by_the_configuration_is_not_tried_again(start: Start) -> None:
    cores = LoopCores(start_failures=[None, CoreExit("ConfigError: does not fit", is_config_error=True)])
    harness = await start(cores)
    cores.current.die()
    await harness.until(lambda: harness.client.status.phase is EnginePhase.DEAD)
    assert len(cores.cores) == 2


@pytest.mark.promise("ENG-5")
async def test_a_request_that_kills_every_core_is_convicted_and_alone_gets_an_error(start: Start) -> None:
    cores = LoopCores(lethal=lambda request_ids: "bad" in request_ids)
    harness = await start(cores)
    requests = [make_request(name, seed=i) for i, name in enumerate(["a", "bad", "b", "c"])]
    results = await serve(harness, requests)
    for request, result in zip(requests, results, strict=True):
        if request.request_id == "bad":
            assert isinstance(result, GenerationError)
        else:
            assert result == expected(request, cores.config)
    assert len(cores.cores) <= 7
    assert harness.client.status.phase is EnginePhase.READY


@pytest.mark.promise("ENG-5")
async def test_several_killers_are_all_found(start: Start) -> None:
    cores = LoopCores(lethal=lambda request_ids: any(name.startswith("bad") for name in request_ids))
    harness = await start(cores)
    requests = [make_request(name, seed=i) for i, name in enumerate(["bad1", "a", "bad2", "b", "bad3"])]
    results = await serve(harness, requests)
    assert [isinstance(result, GenerationError) for result in results] == [True, False, True, False, True]
    assert results[1] == expected(requests[1], cores.config)


@pytest.mark.promise("ENG-5")
async def test_a_killer_among_requests_in_mid_stream_is_found(start: Start) -> None:
    cores = LoopCores()
    harness = await start(cores)
    requests = [make_request(name, seed=i, max_tokens=100) for i, name in enumerate(["a", "bad", "b"])]
    serving = asyncio.ensure_future(serve(harness, requests))
    await harness.until(lambda: cores.current.num_steps >= 10)
    cores.lethal = lambda request_ids: "bad" in request_ids
    results = await serving
    assert isinstance(results[1], GenerationError)
    assert [results[0], results[2]] == [expected(requests[i], cores.config) for i in (0, 2)]


@pytest.mark.promise("ENG-5")
async def test_two_requests_that_kill_only_together_both_finish(start: Start) -> None:
    cores = LoopCores(lethal=lambda request_ids: {"a", "b"} <= set(request_ids))
    harness = await start(cores)
    requests = [make_request("a", seed=1, max_tokens=5), make_request("b", seed=2, max_tokens=5)]
    assert await serve(harness, requests) == [expected(request, cores.config) for request in requests]


async def test_a_request_that_gets_tokens_is_never_convicted_however_often_the_core_dies(start: Start) -> None:
    harness = await start()
    request = make_request(max_tokens=25)
    serving = asyncio.ensure_future(harness.tokens(request))
    while not serving.done():
        await harness.until(lambda: serving.done() or harness.cores.current.num_steps >= 1)
        await harness.kill_core()
    assert serving.result() == expected(request, harness.cores.config)
    assert len(harness.cores.cores) >= 15


async def test_new_requests_wait_while_suspects_are_tried(start: Start) -> None:
    cores = LoopCores(lethal=lambda request_ids: "bad" in request_ids)
    harness = await start(cores)
    first = asyncio.ensure_future(serve(harness, [make_request("bad"), make_request("a")]))
    await harness.until(lambda: len(cores.cores) == 4)
    late = make_request("late")
    assert await harness.tokens(late) == expected(late, cores.config)
    assert isinstance((await first)[0], GenerationError)


async def test_an_aborted_suspect_makes_way(start: Start) -> None:
    cores = LoopCores(lethal=lambda request_ids: "bad" in request_ids)
    harness = await start(cores)
    serving = asyncio.ensure_future(serve(harness, [make_request("bad"), make_request("a")]))
    await harness.until(lambda: len(cores.cores) == 3 and cores.current.is_alive and bool(cores.current.received))
    assert harness.client.supervisor._probe is not None
    cores.current.freeze()
    await harness.client.abort(["bad"])
    cores.current.thaw()
    results = await serving
    assert results[1] == expected(make_request("a"), cores.config)


async def test_deaths_without_any_work_end_in_giving_up(start: Start) -> None:
    options = NativeClientOptions(restart=RestartPolicy(first_backoff_s=0.0, max_idle_deaths=3))
    harness = await start(options=options)
    for _ in range(3):
        await harness.until(lambda: harness.client.status.phase is EnginePhase.READY)
        harness.cores.current.die()
    assert harness.client.status.phase is EnginePhase.DEAD
    assert "died 3 times without any work" in harness.client.status.detail


async def test_work_between_idle_deaths_keeps_the_engine(start: Start) -> None:
    options = NativeClientOptions(restart=RestartPolicy(first_backoff_s=0.0, max_idle_deaths=2))
    harness = await start(options=options)
    for i in range(4):
        await harness.tokens(make_request(str(i)))
        harness.cores.current.die()
    assert harness.client.status.phase is EnginePhase.RESTARTING


async def test_only_the_second_fruitless_death_in_a_row_has_to_wait(start: Start) -> None:
    options = NativeClientOptions(restart=RestartPolicy(first_backoff_s=1000.0, max_backoff_s=1000.0))
    harness = await start(options=options)
    harness.cores.current.die()
    await harness.until(lambda: harness.client.status.phase is EnginePhase.READY)
    harness.cores.current.die()
    assert harness.client.supervisor._restart.when() > asyncio.get_running_loop().time() + 900


@pytest.mark.promise("PAIN-1")
async def test_pain_1_start_up_is_reported_with_phases_and_their_times(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="vllm_mxext")
    harness = await start(is_ready=False)
    assert harness.client.status.phase is EnginePhase.STARTING
    await harness.until(lambda: harness.client.status.phase is EnginePhase.LOADING)
    assert 0 < harness.client.status.progress < 1
    await harness.client.wait_until_ready()
    status = harness.client.status
    assert (status.phase, status.progress) == (EnginePhase.READY, 1.0)
    assert [name for name, _ in status.phase_seconds] == ["starting", "loading"]
    assert re.search(r"The engine is ready after \d+\.\d+ s starting, \d+\.\d+ s loading\.", caplog.text)


def time_passes(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Sets the event loop's clock forward."""
    loop = asyncio.get_running_loop()
    time_of_loop = loop.time
    monkeypatch.setattr(loop, "time", lambda: time_of_loop() + seconds)


async def test_a_silent_core_is_reported_and_recovers_with_its_work(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = await start()
    core = harness.cores.current
    core.freeze()
    stream = await harness.client.generate(make_request())
    time_passes(monkeypatch, 1_000.0)
    assert harness.client.status.phase is EnginePhase.STALLED
    with pytest.raises(EngineDeadError, match="has said nothing for"):
        await harness.client.check_health()
    core.thaw()
    assert harness.client.status.phase is EnginePhase.READY
    assert [output async for output in stream][-1].finished


async def test_a_core_that_computes_for_long_is_slow_and_only_one_that_never_ends_is_stalled(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = await start()
    core = harness.cores.current
    core.freeze()
    core.is_at_work = True
    time_passes(monkeypatch, 1_000.0)
    await harness.client.check_health()
    stream = await harness.client.generate(make_request())
    time_passes(monkeypatch, 1_000.0)
    assert harness.client.status.phase is EnginePhase.STALLED
    core.thaw()
    assert [output async for output in stream][-1].finished


async def test_a_silent_core_without_work_is_reported_too(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = await start()
    harness.cores.current.freeze()
    time_passes(monkeypatch, 1_000.0)
    assert harness.client.status.phase is EnginePhase.STALLED
    harness.cores.current.thaw()
    await harness.client.check_health()


async def test_a_core_that_dies_during_shutdown_is_not_replaced(start: Start) -> None:
    harness = await start()
    serving = asyncio.ensure_future(harness.outputs(make_request()))
    await harness.until(lambda: bool(harness.cores.current.received))
    await harness.client.shutdown()
    outputs = await serving
    assert outputs[-1].outputs[0].finish_reason == "abort"
    assert len(harness.cores.cores) == 1


async def test_a_core_that_dies_while_draining_is_replaced(start: Start) -> None:
    harness = await start()
    request = make_request()
    serving = asyncio.ensure_future(harness.tokens(request))
    await harness.until(lambda: harness.cores.current.num_steps >= 3)
    harness.client.begin_drain()
    harness.cores.current.die()
    await harness.client.shutdown(timeout_s=60)
    assert await serving == expected(request, harness.cores.config)
