"""What sampling fields of requests become, and log probabilities of prompts in responses."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.api.refusals import CHAT, PLAIN, refused

pytestmark = [pytest.mark.asyncio(loop_scope="module")]

FIELDS: dict[str, Any] = {
    "logit_bias": {"5": 2.5}, "allowed_token_ids": [97, 98], "bad_words": ["x y"], "truncate_prompt_tokens": 7,
    "truncation_side": "right", "stream_interval": 3, "typical_p": 0.5, "top_n_sigma": 1.5, "xtc_probability": 0.25,
    "xtc_threshold": 0.2, "dry_multiplier": 0.8, "dry_base": 1.5, "dry_allowed_length": 3, "dry_penalty_last_n": 64,
    "dry_sequence_breakers": ["."], "mirostat": 2, "mirostat_tau": 4.0, "mirostat_eta": 0.2, "dynatemp_range": 0.3,
    "dynatemp_exponent": 1.5, "best_of": 2,
}  # fmt: skip


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", PLAIN)])
async def test_fields_reach_the_engine_as_they_are(shared_server, path, body):
    response = await shared_server.http.post(path, json=body | FIELDS | {"temperature": 1.0})

    assert response.status_code == 200, response.text
    params = shared_server.engine.requests[-1].params
    expected = FIELDS | {
        "logit_bias": {5: 2.5}, "allowed_token_ids": (97, 98), "bad_words": ("x y",), "dry_sequence_breakers": (".",)
    }  # fmt: skip
    assert {name: getattr(params, name) for name in FIELDS} == expected


async def test_a_repetition_rule_is_read_and_one_of_size_0_is_none(shared_server):
    for rule, expected in (({"max_pattern_size": 4, "min_count": 3}, (4, 1, 3)), ({"max_pattern_size": 0}, None)):
        response = await shared_server.http.post("/v1/completions", json=PLAIN | {"repetition_detection": rule})
        assert response.status_code == 200
        got = shared_server.engine.requests[-1].params.repetition_detection
        assert (got and (got.max_pattern_size, got.min_pattern_size, got.min_count)) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logit_bias", {"five": 1}), ("allowed_token_ids", ["a"]), ("allowed_token_ids", []), ("bad_words", [1]),
        ("bad_words", [""]), ("truncation_side", "middle"), ("stream_interval", 0), ("best_of", 0), ("mirostat", 3),
        ("repetition_detection", {"max_pattern_size": 2, "min_count": 1}), ("logprob_token_ids", list(range(200))),
        ("stop", "x" * 65_537), ("stop", ["x" * 32_768, "y" * 32_769]), ("bad_words", ["x" * 65_537]),
    ],
)  # fmt: skip
async def test_values_that_make_no_sense_are_refused_by_name(shared_server, field, value):
    assert (await refused(shared_server, "/v1/completions", PLAIN | {field: value}))["param"].startswith(field)


@pytest.mark.promise("SAMP-8")
async def test_an_echoed_prompt_has_log_probabilities_as_lm_eval_reads_them(shared_server):
    body = PLAIN | {"prompt": "abc", "echo": True, "logprobs": 2, "max_tokens": 1, "temperature": 0}
    response = await shared_server.http.post("/v1/completions", json=body)

    [choice] = response.json()["choices"]
    told = choice["logprobs"]
    assert choice["text"] == "abca"
    assert told["tokens"] == ["<s>", "a", "b", "c", "a"]
    assert told["text_offset"] == [0, 0, 1, 2, 3]
    assert told["token_logprobs"] == [None, -0.5, -0.5, -0.5, -0.5]
    assert told["top_logprobs"][:2] == [None, {"a": -0.5, "b": -2.5}]
    assert "prompt_logprobs" not in choice


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_an_echo_without_tokens_tells_the_prompt_alone(shared_server, is_streamed):
    body = PLAIN | {"prompt": "ab", "echo": True, "logprobs": 0, "max_tokens": 0, "return_token_ids": True}
    if is_streamed:
        events = await shared_server.stream_events("/v1/completions", body)
        chunks = [orjson.loads(event.removeprefix("data: ")) for event in events[:-1]]
        [choice] = [choice for chunk in chunks for choice in chunk["choices"]]
    else:
        response = await shared_server.http.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        [choice] = response.json()["choices"]
    assert (choice["text"], choice["token_ids"], choice["finish_reason"]) == ("ab", [], "length")
    assert choice["logprobs"]["tokens"] == ["<s>", "a", "b"]

    error = await refused(shared_server, "/v1/completions", PLAIN | {"max_tokens": 0})
    assert error["param"] == "max_tokens"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_every_sample_of_an_echoed_prompt_has_them(shared_server, is_streamed):
    body = PLAIN | {"prompt": [[97, 98], [99]], "echo": True, "logprobs": 0, "n": 2, "stream": is_streamed}
    response = await shared_server.http.post("/v1/completions", json=body | {"temperature": 1, "max_tokens": 1})

    if is_streamed:
        lines = [line for line in response.text.splitlines() if line.startswith("data: {")]
        choices = [choice for line in lines for choice in orjson.loads(line[6:])["choices"]]
    else:
        choices = response.json()["choices"]
    tokens: dict[int, list[str]] = {}
    for choice in choices:
        tokens.setdefault(choice["index"], []).extend(choice["logprobs"]["tokens"] if choice["logprobs"] else [])
    assert tokens == {0: ["a", "b", "a"], 1: ["a", "b", "a"], 2: ["c", "c"], 3: ["c", "c"]}


@pytest.mark.promise("SAMP-8")
async def test_log_probabilities_of_the_prompt_are_returned_in_vllms_form(shared_server):
    plain = await shared_server.http.post("/v1/completions", json=PLAIN | {"prompt": [97, 98], "prompt_logprobs": 1})
    chat = await shared_server.http.post("/v1/chat/completions", json=CHAT | {"prompt_logprobs": 0})

    expected = [None, {"98": {"logprob": -0.5, "rank": 1, "decoded_token": "b"}}]
    assert plain.json()["choices"][0]["prompt_logprobs"] == expected
    assert chat.json()["prompt_logprobs"][0] is None


async def test_log_probabilities_of_chosen_ids_are_listed(shared_server):
    body = CHAT | {"logprobs": True, "logprob_token_ids": [5]}
    assert (await shared_server.http.post("/v1/chat/completions", json=body)).status_code == 200
    assert shared_server.engine.requests[-1].params.logprob_token_ids == (5,)
    error = await refused(shared_server, "/v1/chat/completions", CHAT | {"logprob_token_ids": [5]})
    assert "needs logprobs" in error["message"]
