"""The event stream on the wire: framing, headers, keep-alive comments, failures in mid-stream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vllm_mxext.config.server import ServerConfig

pytestmark = pytest.mark.promise("STREAM-1")

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
CHAT_STREAM = CHAT | {"stream": True}
BOTH = pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "hello"})], ids=["chat", "plain"]
)


def data_of(line: str) -> Any:
    assert line.startswith("data: ")
    return json.loads(line.removeprefix("data: "))


@BOTH
async def test_every_event_is_one_data_line_and_done_is_the_last(server, path, body):
    lines = await server.stream_events(path, body)

    assert lines[-1] == "data: [DONE]"
    objects = [data_of(line)["object"] for line in lines[:-1]]
    assert set(objects) == {"chat.completion.chunk" if "chat" in path else "text_completion"}


async def test_streams_are_never_cached_or_buffered(server):
    async with server.http.stream("POST", "/v1/chat/completions", json=CHAT_STREAM) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["x-request-id"]


@BOTH
async def test_chunks_have_a_usage_field_only_when_usage_was_asked_for(server, path, body):
    without = await server.stream_events(path, body)
    with_usage = await server.stream_events(path, {**body, "stream_options": {"include_usage": True}})

    assert all("usage" not in data_of(line) for line in without[:-1])
    chunks = [data_of(line) for line in with_usage[:-1]]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["completion_tokens"]) == ([], 6)


async def test_headers_arrive_before_the_first_token(server):
    server.engine.hold()
    async with server.http.stream("POST", "/v1/chat/completions", json=CHAT_STREAM) as response:
        assert response.status_code == 200


@pytest.mark.promise("ENG-7")
@BOTH
async def test_a_failure_in_mid_stream_is_told_in_the_stream(server, path, body):
    server.engine.hold()
    async with server.http.stream("POST", path, json={**body, "stream": True}) as response:
        lines = response.aiter_lines()
        server.engine.release(1)
        first = data_of(await anext(lines))
        server.engine.fail("A kernel broke; restart the server.")
        rest = [line async for line in lines if line]

    assert first["choices"]
    assert data_of(rest[-2]) == {
        "error": {
            "message": "A kernel broke; restart the server.", "type": "InternalServerError", "param": None, "code": 500,
        }
    }  # fmt: skip
    assert rest[-1] == "data: [DONE]"


async def test_an_engine_that_dies_in_mid_stream_is_told_as_unavailable(server):
    server.engine.hold()
    async with server.http.stream("POST", "/v1/chat/completions", json=CHAT_STREAM) as response:
        await server.engine.wait_for(lambda: server.engine.num_open == 1)
        server.engine.die("out of memory")
        lines = [line async for line in response.aiter_lines() if line]

    assert data_of(lines[0])["error"]["code"] == 503
    assert lines[-1] == "data: [DONE]"


async def test_a_server_side_abort_ends_the_stream_with_finish_reason_abort(server):
    server.engine.hold()
    async with server.http.stream("POST", "/v1/chat/completions", json=CHAT_STREAM) as response:
        await server.engine.wait_for(lambda: server.engine.num_open == 1)
        await server.engine.abort([server.engine.requests[0].request_id])
        lines = [line async for line in response.aiter_lines() if line]

    assert data_of(lines[-2])["choices"][0]["finish_reason"] == "abort"


@pytest.mark.promise("STREAM-3")
async def test_silence_is_broken_by_comments(serve, clock):
    server = await serve(clock=clock, config=ServerConfig(sse_keep_alive_s=15))
    server.engine.hold()
    async with server.http.stream("POST", "/v1/chat/completions", json=CHAT_STREAM) as response:
        lines = response.aiter_lines()
        for _ in range(2):
            await clock.advance(15)
            assert await anext(lines) == ": keep-alive"
            assert await anext(lines) == ""
        server.engine.release()
        assert [line async for line in lines][-2] == "data: [DONE]"


async def test_the_silence_is_counted_from_the_last_event(serve, clock):
    server = await serve(clock=clock, config=ServerConfig(sse_keep_alive_s=15))
    server.engine.hold()
    seen = []
    async with server.http.stream("POST", "/v1/completions", json={"prompt": "hello", "stream": True}) as response:
        lines = response.aiter_lines()
        await clock.advance(10)
        server.engine.release(1)
        seen.append((await anext(lines))[:5])
        await clock.advance(5)  # 15 s after the beginning, 5 s after the event
        await clock.advance(10)  # 15 s after the event
        await anext(lines)
        seen.append(await anext(lines))
        server.engine.release()
        seen += [line[:5] async for line in lines if line]

    assert seen[:2] == ["data:", ": keep-alive"]
    assert set(seen[2:]) == {"data:"}


async def test_clients_that_ask_for_a_stream_do_not_get_comments_when_they_are_switched_off(serve, clock):
    server = await serve(clock=clock, config=ServerConfig(sse_keep_alive_s=0))
    server.engine.hold()
    async with server.http.stream("POST", "/v1/completions", json={"prompt": "hello", "stream": True}) as response:
        lines = response.aiter_lines()
        server.engine.release(1)
        first = await anext(lines)
        assert clock.num_sleepers == 0
        server.engine.release()
        rest = [line async for line in lines if line]

    assert all(line.startswith("data: ") for line in (first, *rest))


async def test_a_stream_of_several_prompts_ends_when_all_have_ended(server):
    lines = await server.stream_events("/v1/completions", {"prompt": ["ab", "cde", "f"]})

    chunks = [data_of(line)["choices"][0] for line in lines[:-1]]
    assert sorted(chunk["index"] for chunk in chunks if chunk["finish_reason"]) == [0, 1, 2]


async def test_errors_before_the_first_byte_have_their_status_even_for_streams(server):
    response = await server.http.post("/v1/completions", json={"prompt": [5000], "stream": True})

    assert response.status_code == 400
    assert response.headers["content-type"] == "application/json"
