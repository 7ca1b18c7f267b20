"""What a request's prompt would be, without generating anything."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.refusals import CHAT, PLAIN, refused

pytestmark = pytest.mark.promise("API-11")

TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f"}}


async def test_a_chat_is_rendered_as_it_would_be_served(server):
    body = CHAT | {"tools": [TOOL], "tool_choice": "none"}
    rendered = (await server.http.post("/v1/chat/completions/render", json=body)).json()
    answer = (await server.http.post("/v1/chat/completions", json=body | {"return_token_ids": True})).json()

    assert rendered["prompt"] == server.engine.requests[0].prompt.text
    assert rendered["prompt_token_ids"] == answer["prompt_token_ids"]
    assert (rendered["count"], rendered["model"]) == (len(answer["prompt_token_ids"]), "fake-model")
    assert len(server.engine.requests) == 1


@pytest.mark.parametrize("prompt", ["ab", ["ab", "c"], [97, 98], [[97, 98], [99]]])
async def test_every_form_of_prompt_is_rendered(server, prompt):
    body = {"prompt": prompt, "return_token_ids": True}
    rendered = (await server.http.post("/v1/completions/render", json=body)).json()["prompts"]
    answer = (await server.http.post("/v1/completions", json=body)).json()

    assert [one["prompt_token_ids"] for one in rendered] == [choice["prompt_token_ids"] for choice in answer["choices"]]
    assert [one["prompt"].removeprefix("<s>") for one in rendered] == ["ab", "c"][: len(rendered)]


async def test_a_prompt_that_has_its_bos_is_rendered_with_one(server):
    rendered = (await server.http.post("/v1/completions/render", json={"prompt": "<s>a"})).json()["prompts"]
    tokens = (await server.http.post("/tokenize", json={"prompt": "<s>a"})).json()["tokens"]

    assert rendered[0]["prompt_token_ids"] == tokens == [256, 97]


@pytest.mark.parametrize(
    ("path", "body", "param", "status"),
    [
        ("/v1/chat/completions/render", CHAT | {"model": "nope"}, "model", 404),
        ("/v1/chat/completions/render", CHAT | {"tools": [TOOL]}, "tool_choice", 400),
        ("/v1/completions/render", PLAIN | {"model": "nope"}, "model", 404),
        ("/v1/completions/render", PLAIN | {"truncate_prompt_tokens": 1}, "truncate_prompt_tokens", 400),
        ("/v1/completions/render", {}, "prompt", 400),
    ],
)
async def test_what_could_not_be_served_is_not_rendered(server, path, body, param, status):
    assert (await refused(server, path, body, status))["param"] == param
