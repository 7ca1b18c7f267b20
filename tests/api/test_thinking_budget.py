"""`thinking_token_budget` over HTTP, on the real engine with the built-in model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from vllm_mxext.config.server import ParserConfig, ServerConfig
from vllm_mxext.engine.backends.native import NativeEngineClient
from vllm_mxext.engine.engine_args import EngineArgs
from vllm_mxext.server.app import create_app
from vllm_mxext.tokenizer.loading import load_tokenizer

pytestmark = [pytest.mark.promise("TOOL-5"), pytest.mark.asyncio(loop_scope="module")]

BUDGET = 7
OPEN = "{{ messages[0].content }}<think>\n"
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Sort: 5 2 9"}],
    "chat_template": OPEN,
    "max_tokens": 40,
    "ignore_eos": True,
    "temperature": 1.2,
    "seed": 3,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http() -> AsyncIterator[httpx.AsyncClient]:
    arguments = EngineArgs(max_num_batched_tokens=128, max_num_seqs=6, num_threads=1, reasoning_parser="generic")
    config = arguments.resolve()
    client = NativeEngineClient(config.engine, config.frontend, load_tokenizer(config.engine.model.tokenizer_path))
    parsers = ParserConfig(reasoning_parser="generic")
    app = create_app(client, ServerConfig(trust_request_chat_template=True, parsers=parsers))
    await client.start()
    await client.wait_until_ready()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=120) as http:
        yield http
    await client.shutdown()


async def ask(http: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    response = await http.post("/v1/chat/completions", json=ASKED | {"return_token_ids": True} | fields)
    assert response.status_code == 200, response.text
    return response.json()["choices"]


async def end_ids(http: httpx.AsyncClient) -> list[int]:
    response = await http.post("/tokenize", json={"prompt": "</think>", "add_special_tokens": False})
    return response.json()["tokens"]


@pytest.mark.parametrize("budget", [0, BUDGET])
async def test_reasoning_ends_behind_the_budget_and_the_answer_follows(http, budget):
    closing = await end_ids(http)
    for choice in await ask(http, thinking_token_budget=budget, n=2):
        assert choice["token_ids"][budget : budget + len(closing)] == closing
        assert len(choice["token_ids"]) == ASKED["max_tokens"]
        assert bool(choice["message"]["reasoning"]) == (budget > 0)
        assert choice["message"]["content"]
        assert "</think>" not in choice["message"]["content"]


@pytest.mark.parametrize("fields", [{}, {"thinking_token_budget": -1}, {"thinking_token_budget": None}], ids=str)
async def test_without_a_budget_reasoning_goes_on(http, fields):
    [choice] = await ask(http, **fields)
    assert choice["message"]["reasoning"]
    assert choice["message"]["content"] is None


async def test_a_stream_joins_to_the_whole_answer(http):
    [whole] = await ask(http, thinking_token_budget=BUDGET)
    body = ASKED | {"thinking_token_budget": BUDGET, "stream": True}
    made = {"content": "", "reasoning": ""}
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    for name in made:
                        made[name] += choice["delta"].get(name) or ""
    assert made == {name: whole["message"][name] for name in made}


async def test_a_form_of_the_answer_holds_behind_the_reasoning(http):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer", "maximum": 999}}}
    [choice] = await ask(http, thinking_token_budget=BUDGET, response_format=form, max_tokens=80)
    assert choice["finish_reason"] == "stop"
    assert isinstance(json.loads(choice["message"]["content"]), int)


async def test_plain_completions_have_it_too(http):
    closing = await end_ids(http)
    body = {"prompt": "<think>", "max_tokens": 30, "thinking_token_budget": 3, "return_token_ids": True}
    response = await http.post("/v1/completions", json=body)
    [choice] = response.json()["choices"]
    assert choice["token_ids"][3 : 3 + len(closing)] == closing


async def test_it_must_be_a_number_of_tokens(http):
    response = await http.post("/v1/chat/completions", json=ASKED | {"thinking_token_budget": -2})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "thinking_token_budget"


async def test_beam_search_has_no_budget(http):
    body = ASKED | {"thinking_token_budget": 4, "use_beam_search": True, "seed": None}
    response = await http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert "use_beam_search" in response.json()["error"]["message"]
