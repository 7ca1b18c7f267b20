"""`POST /generate` and `GET /model`: the documented shapes, and the guards of every other route."""

from __future__ import annotations

import json

import pytest

from tests.api.refusals import PLAIN, refused
from vllm_mxext.config.server import ServerConfig
from vllm_mxext.engine.backends.fake import FakeEngineClient

pytestmark = pytest.mark.promise("API-13")

PROMPT = {"prompt": "Hello, world!", "max_tokens": 20, "temperature": 0.7, "top_p": 0.9}


async def test_a_prompt_is_continued_in_the_documented_form(server):
    answer = (await server.http.post("/generate", json=PROMPT)).json()
    completion = (await server.http.post("/v1/completions", json=PROMPT)).json()

    assert answer == {
        "text": completion["choices"][0]["text"],
        "metadata": {
            "finish_reason": completion["choices"][0]["finish_reason"],
            "model": "fake-model",
            "usage": completion["usage"],
        },
    }
    assert answer["text"]
    assert [one.params for one in server.engine.requests[:1]] == [one.params for one in server.engine.requests[1:]]


async def test_a_stream_brings_pieces_and_then_why_it_ended(server):
    whole = (await server.http.post("/generate", json=PROMPT)).json()
    lines = await server.stream_events("/generate", PROMPT)

    assert lines[-1] == "data: [DONE]"
    pieces = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(piece["text"] for piece in pieces) == whole["text"]
    assert pieces[-1]["metadata"] == whole["metadata"]
    assert {(one["metadata"]["finish_reason"], one["metadata"]["usage"]) for one in pieces[:-1]} == {(None, None)}


async def test_token_ids_are_a_prompt_too(server):
    answer = await server.http.post("/generate", json={"prompt": [97, 98]})
    assert answer.json()["metadata"]["usage"]["prompt_tokens"] == 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": ["a", "b"]}, "one string"),
        ({"prompt": [[97], [98]]}, "one string"),
        ({"n": 2}, "n must be 1"),
        ({"logprobs": 1}, "logprobs has no place"),
        ({"return_token_ids": True}, "return_token_ids has no place"),
        ({"stream": True, "stream_options": {"include_usage": True}}, "stream_options has no place"),
    ],
)
async def test_what_has_no_place_in_the_answer_is_refused_with_where_to_go(server, fields, words):
    message = (await refused(server, "/generate", PLAIN | fields, 400))["message"]
    assert words in message
    assert "/v1/completions" in message


@pytest.mark.parametrize(
    ("fields", "param", "status"),
    [
        ({"model": "nope"}, "model", 404),
        ({"temperature": -1}, "temperature", 400),
        ({"max_tokens": "many"}, "max_tokens", 400),
        ({"suffix": "x"}, "suffix", 400),
    ],
)
async def test_it_refuses_what_completions_refuse(server, fields, param, status):
    body = PLAIN | fields
    error = await refused(server, "/generate", body, status)
    assert error["param"] == param
    assert error == await refused(server, "/v1/completions", body, status)


async def test_a_broken_body_is_an_openai_error(server):
    answer = await server.http.post("/generate", content=b"{")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, 400)


async def test_strict_params_refuse_unknown_fields(serve):
    server = await serve(config=ServerConfig(refuses_unknown_fields=True))
    assert (await refused(server, "/generate", PLAIN | {"maxtokens": 1}, 400))["param"] == "maxtokens"


async def test_keys_guard_both(serve):
    server = await serve(config=ServerConfig(api_keys=("secret",)))
    assert (await server.http.post("/generate", json=PROMPT)).status_code == 401
    assert (await server.http.get("/model")).status_code == 401
    key = {"Authorization": "Bearer secret"}
    assert (await server.http.post("/generate", json=PROMPT, headers=key)).status_code == 200


async def test_the_model_is_described_as_among_the_models(serve):
    server = await serve(FakeEngineClient(max_model_len=123))
    described = (await server.http.get("/model")).json()
    cards = (await server.http.get("/v1/models")).json()["data"]

    assert cards[0].items() <= described.items()
    assert described["names"] == [card["id"] for card in cards]
    assert (described["name"], described["max_model_len"]) == ("fake-model", 123)
    assert described["adapters"] == []
    assert (await server.http.head("/model")).status_code == 200


async def test_the_description_names_both(server):
    paths = server.app.openapi()["paths"]
    assert {"post"} == set(paths["/generate"])
    assert {"get"} == set(paths["/model"])
    assert "NativeGenerateRequest" in server.app.openapi()["components"]["schemas"]
