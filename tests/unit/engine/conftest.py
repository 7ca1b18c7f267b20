"""A native client on cores that run on the test's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.adapter_fakes import AdapterFolder
from tests.engine_fakes import LoopCores, engine_config, undisturbed
from vllm_mxext.beam_search_params import BeamSearchParams
from vllm_mxext.config.engine import LoRAConfig
from vllm_mxext.config.frontend import AdmissionConfig, FrontendConfig
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.engine.backends.native import NativeClientOptions, NativeEngineClient
from vllm_mxext.engine.client import AdapterSource, EnginePhase
from vllm_mxext.engine.frontend.input_processor import InputProcessor
from vllm_mxext.engine.supervisor import RestartPolicy
from vllm_mxext.outputs import RequestOutput
from vllm_mxext.requests import BeamSearchRequest, GenerateRequest, TokensPrompt
from vllm_mxext.sampling_params import OutputKind, SamplingParams


@dataclass
class Harness:
    """A client, the cores behind it and the adapters that it can find."""

    client: NativeEngineClient
    cores: LoopCores
    files: AdapterFolder

    async def tokens(self, request: GenerateRequest) -> list[int]:
        """Serves a request and returns the tokens of its first sample."""
        return [t for output in await self.outputs(request) for t in output.outputs[0].token_ids]

    async def outputs(self, request: GenerateRequest) -> list[RequestOutput]:
        return [output async for output in await self.client.generate(request)]

    async def kill_core(self) -> None:
        """Kills the core and waits for the next one."""
        num_cores = len(self.cores.cores)
        self.cores.current.die()
        await self.until(lambda: len(self.cores.cores) > num_cores)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Lets the event loop turn until `condition()` holds."""
        while not condition():  # noqa: ASYNC110 - each turn of the loop is a step of the test's engine
            await asyncio.sleep(0)


def make_request(request_id: str = "r", prompt: str = "hello", **params: Any) -> GenerateRequest:
    values = {"max_tokens": 20, "ignore_eos": True, "seed": 3, "output_kind": OutputKind.DELTA, **params}
    return GenerateRequest(request_id, TokensPrompt(tuple(prompt.encode())), SamplingParams(**values))


def expected(request: GenerateRequest, config: Any, index: int = 0) -> list[int]:
    """The tokens of one sample in an undisturbed run."""
    processor = InputProcessor(config, FakeTokenizer(), lambda: 0)
    return undisturbed(processor.process(request, 0.0).samples[index])


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Any]]:
    """Starts clients: `await start(cores, options=..., admission=...)` returns a `Harness` that is ready."""
    clients: list[NativeEngineClient] = []
    all_cores: list[LoopCores] = []

    async def make(
        cores: LoopCores | None = None,
        *,
        options: NativeClientOptions | None = None,
        admission: AdmissionConfig | None = None,
        is_ready: bool = True,
    ) -> Harness:
        cores, files = cores or LoopCores(), AdapterFolder()
        all_cores.append(cores)
        client = NativeEngineClient(
            cores.config,
            FrontendConfig(admission or AdmissionConfig()),
            FakeTokenizer(),
            options=options or NativeClientOptions(restart=RestartPolicy(first_backoff_s=0.0)),
            spawn=cores.spawn,
            inspect=files.inspect,
        )
        clients.append(client)
        await client.start()
        if is_ready:
            await client.wait_until_ready()
        return Harness(client, cores, files)

    yield make
    for client in clients:
        await client.shutdown()
    assert not [mistake for cores in all_cores for core in cores.cores for mistake in core.adapters.mistakes]


SOURCE = AdapterSource("a", "/a")
LORA = LoRAConfig(max_loras=2)


def lora_cores(**options: Any) -> LoopCores:
    return LoopCores(replace(engine_config(), lora=LORA), **options)


@pytest.fixture
async def harness(start: Callable[..., Any]) -> Harness:
    """An engine with one adapter."""
    made: Harness = await start(lora_cores())
    await made.client.load_adapter(SOURCE)
    return made


def with_adapter(request_id: str = "r", scale: float = 1.0, **params: Any) -> GenerateRequest:
    return replace(make_request(request_id, **params), adapter="a", adapter_scale=scale)


def a_search(request_id: str = "s", max_tokens: int = 3) -> BeamSearchRequest:
    prompt = TokensPrompt(tuple(b"hello"))
    return BeamSearchRequest(request_id, prompt, BeamSearchParams(2, max_tokens=max_tokens), adapter="a")


async def is_given_back(harness: Harness) -> bool:
    """Whether nobody uses the adapter: unloading it drops it at once."""
    await harness.until(lambda: harness.client.status.phase is EnginePhase.READY)
    await harness.client.unload_adapter("a")
    return harness.cores.current.adapters.dropped == [(1, 1)]


async def read(stream: AsyncGenerator[RequestOutput, None]) -> list[RequestOutput]:
    return [output async for output in stream]
