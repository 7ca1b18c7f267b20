"""Random histories of requests, aborts and deaths of the engine: what a client receives never depends on them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine_fakes import LoopCores, engine_config, undisturbed
from vllm_mxext.config.frontend import FrontendConfig
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.engine.backends.native import NativeClientOptions, NativeEngineClient
from vllm_mxext.engine.blame import GUILTY_AFTER_DEATHS_ALONE
from vllm_mxext.engine.client import EnginePhase
from vllm_mxext.engine.frontend.input_processor import InputProcessor
from vllm_mxext.engine.supervisor import RestartPolicy
from vllm_mxext.errors import GenerationError
from vllm_mxext.requests import GenerateRequest, TokensPrompt
from vllm_mxext.sampling_params import OutputKind, SamplingParams


@dataclass(frozen=True)
class Open:
    """A new request; a lethal one kills every core that works on it."""

    prompt_len: int
    max_tokens: int
    num_samples: int
    is_lethal: bool


@dataclass(frozen=True)
class Abort:
    """The `index`-th request so far is aborted."""

    index: int


@dataclass(frozen=True)
class Kill:
    """The core dies."""


@dataclass(frozen=True)
class Wait:
    """The event loop turns a few times."""

    num_turns: int


Event = Open | Abort | Kill | Wait

histories = st.lists(
    st.one_of(
        st.builds(Open, st.integers(1, 60), st.integers(1, 30), st.integers(1, 3), st.just(False)),
        st.builds(Open, st.integers(1, 20), st.integers(1, 30), st.just(1), st.booleans()),
        st.builds(Abort, st.integers(0, 8)),
        st.just(Kill()),
        st.builds(Wait, st.integers(1, 12)),
        st.builds(Wait, st.integers(1, 12)),
    ),
    min_size=1,
    max_size=25,
)


@dataclass
class Opened:
    request: GenerateRequest
    is_lethal: bool
    reading: asyncio.Future[list[list[int]]]
    is_aborted: bool = False


async def read(client: NativeEngineClient, request: GenerateRequest) -> list[list[int]]:
    """Serves a request and returns the tokens of each sample."""
    tokens: list[list[int]] = [[] for _ in range(request.params.n)]
    async for output in await client.generate(request):
        for sample in output.outputs:
            tokens[sample.index] += sample.token_ids
    return tokens


async def play(history: list[Event], num_draft_tokens: int) -> None:
    cores = LoopCores(engine_config(max_num_seqs=4, num_draft_tokens=num_draft_tokens))
    cores.lethal = lambda names: any("lethal" in name for name in names)
    options = NativeClientOptions(restart=RestartPolicy(first_backoff_s=0.0, max_idle_deaths=10**6))
    client = NativeEngineClient(cores.config, FrontendConfig(), FakeTokenizer(), options=options, spawn=cores.spawn)
    await client.start()
    await client.wait_until_ready()
    opened: list[Opened] = []
    for event in history:
        match event:
            case Open(prompt_len, max_tokens, num_samples, is_lethal):
                name = f"{'lethal' if is_lethal else 'good'}-{len(opened)}"
                params = SamplingParams(
                    max_tokens=max_tokens, n=num_samples, seed=len(opened), output_kind=OutputKind.DELTA
                )
                request = GenerateRequest(name, TokensPrompt(tuple(range(1, prompt_len + 1))), params)
                opened.append(Opened(request, is_lethal, asyncio.ensure_future(read(client, request))))
            case Abort(index) if index < len(opened):
                opened[index].is_aborted = True
                await client.abort([opened[index].request.request_id])
            case Kill():
                cores.current.die()
            case Wait(num_turns):
                for _ in range(num_turns):
                    await asyncio.sleep(0)
            case _:
                pass
    results = await asyncio.gather(*(each.reading for each in opened), return_exceptions=True)
    expectations = InputProcessor(cores.config, FakeTokenizer(), lambda: 0)
    num_kills = sum(isinstance(event, Kill) for event in history)
    for each, result in zip(opened, results, strict=True):
        if isinstance(result, BaseException):
            assert isinstance(result, GenerationError)
            assert each.is_lethal or num_kills >= GUILTY_AFTER_DEATHS_ALONE
            continue
        check(each, result, [undisturbed(sample) for sample in expectations.process(each.request, 0.0).samples])
    assert client.status.phase in (EnginePhase.READY, EnginePhase.RESTARTING)
    await client.shutdown()


def check(opened: Opened, result: list[list[int]], expected: list[list[int]]) -> None:
    if opened.is_aborted:
        assert all(whole[: len(part)] == part for part, whole in zip(result, expected, strict=True))
    else:
        assert not opened.is_lethal
        assert result == expected


@pytest.mark.promise("ENG-4", "ENG-5", "ENG-7", "SPEC-1")
@settings(max_examples=150, deadline=None)
@given(histories, st.sampled_from([0, 3]))
def test_every_request_gets_its_own_tokens_whatever_happens_to_the_engine(
    history: list[Event], num_draft_tokens: int
) -> None:
    asyncio.run(play(history, num_draft_tokens))
