"""Every kind of bad request gets its status and a full error object that says what to do."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.api.refusals import CHAT, PLAIN, error_of, refused
from vllm_mxext.engine.backends.fake import FakeEngineClient
from vllm_mxext.errors import InvalidRequestError

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.promise("API-4")]

USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "The request body is empty"),
        (b"  \n", "The request body is empty"),
        (b'{"prompt": "x"', "not valid JSON"),
        (b'{"prompt": NaN}', "not valid JSON"),
        (b"\xff\xfe", "not UTF-8: invalid start byte at byte 0"),
        ('{"prompt": "é"}'.encode("latin-1"), "not UTF-8"),
        (b"[1, 2]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"[" * 100_0 + b"]" * 100_0, "JSON"),
    ],
)
async def test_bodies_that_are_no_json_object_are_refused(shared_server, path, body, sentence):
    response = await shared_server.http.post(path, content=body)

    assert response.status_code == 400
    error = error_of(response)
    assert sentence in error["message"]
    assert error["type"] == "Bad Request"


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/json"])
async def test_json_is_taken_whatever_the_content_type_says(shared_server, content_type):
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = await shared_server.http.post("/v1/completions", content=json.dumps(PLAIN), headers=headers)

    assert response.status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {}, "prompt"),
        ("/v1/completions", {"prompt": None}, "prompt"),
        ("/v1/completions", {"prompt": 5}, "prompt"),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/completions", {"prompt": ["a", 1]}, "prompt"),
        ("/v1/completions", {"prompt": [True]}, "prompt"),
        ("/v1/completions", {"prompt": [[1], ["a"]]}, "prompt"),
        ("/v1/completions", {"prompt": [1.5]}, "prompt"),
        ("/v1/completions", {"prompt": ["x"] * 1025}, "prompt"),
        ("/v1/completions", PLAIN | {"temperature": "hot"}, "temperature"),
        ("/v1/completions", PLAIN | {"n": 1.5}, "n"),
        ("/v1/completions", PLAIN | {"seed": 10**40}, "seed"),
        ("/v1/completions", PLAIN | {"stop": 3}, "stop"),
        ("/v1/completions", PLAIN | {"stop": ["a", 3]}, "stop"),
        ("/v1/completions", PLAIN | {"stop_token_ids": [1, "a"]}, "stop_token_ids"),
        ("/v1/completions", PLAIN | {"stream": "maybe"}, "stream"),
        ("/v1/completions", PLAIN | {"request_id": "with space"}, "request_id"),
        ("/v1/chat/completions", {}, "messages"),
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": "hello"}, "messages"),
        ("/v1/chat/completions", {"messages": ["hello"]}, "messages[0]"),
        ("/v1/chat/completions", {"messages": [{"content": "x"}]}, "messages[0].role"),
        ("/v1/chat/completions", {"messages": [{"role": "", "content": "x"}]}, "messages[0].role"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ("/v1/chat/completions", CHAT | {"logprobs": 5}, "logprobs"),
        ("/v1/chat/completions", CHAT | {"chat_template_kwargs": []}, "chat_template_kwargs"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user"}], "tools": [{"type": "function"}]}, "tools[0].function"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "abc"}, "tokens"),
        ("/detokenize", {"tokens": None}, None),
    ],
)
async def test_fields_of_wrong_types_are_named(shared_server, path, body, param):
    error = await refused(shared_server, path, body)

    assert error["type"] == "Bad Request"
    assert error["param"] == param


@pytest.mark.promise("SAMP-5")
@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", PLAIN | {"temperature": 2.5}, "temperature"),
        ("/v1/completions", PLAIN | {"temperature": -1}, "temperature"),
        ("/v1/completions", PLAIN | {"top_p": 0}, "top_p"),
        ("/v1/completions", PLAIN | {"top_k": -2}, "top_k"),
        ("/v1/completions", PLAIN | {"min_p": 2}, "min_p"),
        ("/v1/completions", PLAIN | {"n": 0}, "n"),
        ("/v1/completions", PLAIN | {"n": 2, "temperature": 0}, "n"),
        ("/v1/completions", PLAIN | {"max_tokens": 0}, "max_tokens"),
        ("/v1/completions", PLAIN | {"min_tokens": 17}, "min_tokens"),
        ("/v1/completions", PLAIN | {"presence_penalty": 3}, "presence_penalty"),
        ("/v1/completions", PLAIN | {"frequency_penalty": -3}, "frequency_penalty"),
        ("/v1/completions", PLAIN | {"repetition_penalty": 0}, "repetition_penalty"),
        ("/v1/completions", PLAIN | {"stop": ""}, "stop"),
        ("/v1/completions", PLAIN | {"logprobs": 21}, "logprobs"),
        ("/v1/completions", {"prompt": ""} | {"add_special_tokens": False}, "prompt"),
        ("/v1/completions", {"prompt": [99999]}, "prompt"),
        ("/v1/completions", PLAIN | {"best_of": 1, "n": 2}, "best_of"),
        ("/v1/completions", PLAIN | {"best_of": 3, "n": 2, "stream": True}, "best_of"),
        ("/v1/chat/completions", CHAT | {"max_completion_tokens": 0}, "max_completion_tokens"),
        ("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("/v1/chat/completions", CHAT | {"chat_template": "{{ messages }}"}, "chat_template"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
         "messages"),
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": [USER]}, "prompt"),
        ("/detokenize", {"tokens": [99999]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
    ],
)  # fmt: skip
async def test_values_out_of_range_are_named(shared_server, path, body, param):
    error = await refused(shared_server, path, body)

    assert error["type"] == "BadRequestError"
    assert error["param"] == param


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        ("/v1/completions", PLAIN | {"stream_options": {"include_usage": True}}, "stream_options needs stream: true"),
        ("/v1/completions", PLAIN | {"stream": True, "prompt_logprobs": 1}, "prompt_logprobs cannot be streamed"),
        ("/v1/completions", PLAIN | {"logprobs": -2}, "logprobs must be at least 0"),
        ("/v1/chat/completions", CHAT | {"top_logprobs": 2}, "top_logprobs needs logprobs: true"),
        ("/v1/chat/completions", CHAT | {"top_logprobs": -2, "logprobs": True}, "top_logprobs must be at least 0"),
        (
            "/v1/chat/completions",
            CHAT | {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message and add_generation_prompt exclude each other",
        ),
        ("/v1/chat/completions", CHAT | {"chat_template_kwargs": {"tokenize": True}}, "must not contain tokenize"),
    ],
)
async def test_contradictions_are_explained(shared_server, path, body, sentence):
    error = await refused(shared_server, path, body)

    assert sentence in error["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
async def test_unknown_models_are_answered_with_the_names_there_are(shared_server, path):
    body = CHAT | PLAIN | {"tokens": [1]}
    if path == "/tokenize":
        del body["messages"]

    error = await refused(shared_server, path, body | {"model": "gpt-9"}, 404)

    assert error["message"] == "The model `gpt-9` does not exist. Served here: `fake-model`, `org/fake-model`."
    assert (error["type"], error["param"]) == ("NotFoundError", "model")


async def test_an_unknown_model_cannot_be_retrieved(shared_server):
    response = await shared_server.http.get("/v1/models/who/knows")

    assert response.status_code == 404
    assert error_of(response)["message"].startswith("The model `who/knows` does not exist.")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "x" * 5000}, "prompt"),
        ("/v1/completions", PLAIN | {"max_tokens": 5000}, "max_tokens"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 5000}]}, "messages"),
        ("/v1/chat/completions", CHAT | {"max_tokens": 5000}, "max_tokens"),
        ("/v1/chat/completions", CHAT | {"max_completion_tokens": 5000}, "max_completion_tokens"),
    ],
)
async def test_context_overflow_has_the_wording_and_reason_that_clients_look_for(shared_server, path, body, param):
    error = await refused(shared_server, path, body)

    assert error["message"].startswith("This model's maximum context length is 4096 tokens. However, ")
    assert (error["param"], error["reason"]) == (param, "context_length_exceeded")


async def test_unknown_paths_are_404(shared_server):
    for path in ("/v2/chat", "/health/", "/v1", "/", "/v1/models/"):
        response = await shared_server.http.get(path)
        assert response.status_code == 404
        assert path in error_of(response)["message"]


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/completions"), ("DELETE", "/v1/models"), ("POST", "/health")]
)
async def test_wrong_methods_are_405_and_told_the_right_one(shared_server, method, path):
    response = await shared_server.http.request(method, path)

    assert response.status_code == 405
    assert error_of(response)["type"] == "MethodNotAllowedError"
    assert response.headers["allow"] in error_of(response)["message"]


async def test_findings_are_capped_in_number_and_length(shared_server):
    wrong = dict.fromkeys(
        (
            "n", "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty",
            "frequency_penalty", "repetition_penalty", "seed", "priority",
        ),
        "x" * 5000,
    )  # fmt: skip

    error = await refused(shared_server, "/v1/completions", PLAIN | wrong)

    assert error["message"].count("; ") == 10
    assert error["message"].endswith("and 2 more")
    assert len(error["message"]) < 10 * 350


async def test_a_long_list_of_wrong_messages_is_one_finding(shared_server):
    error = await refused(shared_server, "/v1/chat/completions", {"messages": [1] * 30_000})

    assert error["param"] == "messages[0]"
    assert "; " not in error["message"]


@pytest.mark.promise("API-7")
@pytest.mark.parametrize("declares_length", [True, False], ids=["content-length", "chunked"])
async def test_bodies_above_the_limit_are_413_and_the_connection_goes_on(shared_server, declares_length):
    body = json.dumps({"prompt": "x" * 3_000_000}).encode()

    async def pieces():
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    response = await shared_server.http.post("/v1/completions", content=body if declares_length else pieces())

    assert response.status_code == 413
    assert error_of(response)["type"] == "RequestTooLargeError"
    assert "100000 bytes" in error_of(response)["message"]
    assert (await shared_server.http.post("/v1/completions", json=PLAIN)).status_code == 200


async def test_the_length_alone_is_enough_to_refuse_a_body(shared_server):
    reader, writer = await asyncio.open_connection("127.0.0.1", shared_server.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100001\r\n\r\n")  # and no body
    status_line = await reader.readline()
    writer.close()

    assert b" 413 " in status_line


async def test_template_errors_are_400(shared_server, monkeypatch):
    def refuse(*args: Any, **kwargs: Any) -> str:
        raise InvalidRequestError("The chat template refused the messages: roles must alternate (line 3)")

    monkeypatch.setattr(shared_server.engine.tokenizer, "apply_chat_template", refuse)
    error = await refused(shared_server, "/v1/chat/completions", CHAT)

    assert "roles must alternate (line 3)" in error["message"]


async def test_unexpected_failures_are_500_and_give_nothing_away(shared_server, monkeypatch, caplog):
    def explode(*args: Any, **kwargs: Any) -> str:
        raise RuntimeError("secret path")

    monkeypatch.setattr(shared_server.engine.tokenizer, "apply_chat_template", explode)
    response = await shared_server.http.post("/v1/chat/completions", json=CHAT)

    assert response.status_code == 500
    assert "secret" not in response.text
    assert error_of(response)["type"] == "InternalServerError"
    assert response.headers["x-request-id"]
    assert "secret path" in caplog.text
    assert (await shared_server.http.post("/v1/completions", json=PLAIN)).status_code == 200


@pytest.mark.promise("OPS-4")
@pytest.mark.asyncio(loop_scope="function")
async def test_a_full_queue_is_429_with_the_time_to_come_again(serve):
    server = await serve(FakeEngineClient(max_num_seqs=1, max_queued=0))
    server.engine.hold()
    connection = await server.send_and_hold("/v1/completions", PLAIN)
    await server.engine.wait_for(lambda: server.engine.num_open == 1)

    for path, body in (("/v1/completions", PLAIN), ("/v1/chat/completions", CHAT | {"stream": True})):
        response = await server.http.post(path, json=body)
        assert response.status_code == 429
        assert response.headers["retry-after"] == "2"
        assert error_of(response)["type"] == "RateLimitError"
    connection.close()


@pytest.mark.asyncio(loop_scope="function")
async def test_more_prompts_than_an_empty_queue_takes_are_400_not_a_429_for_ever(serve):
    server = await serve(FakeEngineClient(max_num_seqs=2, max_queued=3))

    refused = await server.http.post("/v1/completions", json=PLAIN | {"prompt": ["a", "b", "c"], "n": 2})
    taken = await server.http.post("/v1/completions", json=PLAIN | {"prompt": ["a", "b", "c", "d", "e"]})

    assert (refused.status_code, taken.status_code) == (400, 200)
    assert error_of(refused)["param"] == "prompt"
    assert "6 samples" in error_of(refused)["message"]


@pytest.mark.promise("ENG-7")
@pytest.mark.asyncio(loop_scope="function")
async def test_a_failed_request_is_500_with_the_engine_s_reason(server):
    server.engine.hold()
    connection = await server.send_and_hold("/v1/completions", {"prompt": "other"})
    await server.engine.wait_for(lambda: server.engine.num_open == 1)
    asking = asyncio.create_task(server.http.post("/v1/completions", json=PLAIN))
    await server.engine.wait_for(lambda: server.engine.num_open == 2)
    server.engine.fail_request(server.engine.requests[1].request_id, "Row 7 is not a number.")

    response = await asking
    assert response.status_code == 500
    assert error_of(response)["message"] == "Row 7 is not a number."
    assert server.engine.num_open == 1
    connection.close()


@pytest.mark.asyncio(loop_scope="function")
async def test_a_request_aborted_by_the_server_is_503_so_that_it_is_sent_again(server):
    server.engine.hold()
    asking = asyncio.create_task(server.http.post("/v1/completions", json=PLAIN))
    await server.engine.wait_for(lambda: server.engine.num_open == 1)
    await server.engine.abort([server.engine.requests[0].request_id])

    response = await asking
    assert response.status_code == 503
    assert response.headers["retry-after"]
    assert "send it again" in error_of(response)["message"]
