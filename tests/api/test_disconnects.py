"""A client that goes away: its work ends at once, in every phase, streamed or not."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import pytest

from vllm_mxext.engine.backends.fake import FakeEngineClient

pytestmark = pytest.mark.promise("STREAM-4")

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
REQUESTS = pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", CHAT | {"stream": True}),
        ("/v1/completions", {"prompt": "hello"}),
        ("/v1/completions", {"prompt": "hello", "stream": True}),
        ("/v1/completions", {"prompt": ["ab", "cd", "ef"]}),
        ("/v1/completions", {"prompt": ["ab", "cd", "ef"], "stream": True}),
    ],
    ids=["chat", "chat stream", "plain", "plain stream", "prompts", "prompts stream"],
)


def num_prompts(body: dict[str, Any]) -> int:
    return len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1


async def all_aborted(engine: FakeEngineClient, count: int) -> None:
    await engine.wait_for(lambda: len(engine.aborted) == count)
    assert engine.num_open == 0


@REQUESTS
async def test_work_ends_before_the_first_token(server, path, body):
    engine, count = server.engine, num_prompts(body)
    engine.hold()
    connection = await server.send_and_hold(path, body)
    await engine.wait_for(lambda: engine.num_open == count)

    connection.close()

    await all_aborted(engine, count)


@REQUESTS
async def test_work_ends_between_tokens(server, path, body):
    engine, count = server.engine, num_prompts(body)
    engine.hold()
    connection = await server.send_and_hold(path, body)
    await engine.wait_for(lambda: engine.num_open == count)
    engine.release(1)
    await engine.wait_for(lambda: engine.num_steps == 1)

    connection.close()

    await all_aborted(engine, count)


@REQUESTS
async def test_work_ends_while_it_is_queued(serve, path, body):
    engine, count = FakeEngineClient(max_num_seqs=1), num_prompts(body)
    server = await serve(engine)
    engine.hold()
    first = await server.send_and_hold("/v1/completions", {"prompt": "first"})
    await engine.wait_for(lambda: engine.num_open == 1)
    connection = await server.send_and_hold(path, body)
    await engine.wait_for(lambda: engine.num_open == 1 + count)

    connection.close()

    await engine.wait_for(lambda: len(engine.aborted) == count)
    assert engine.num_open == 1
    first.close()


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_request_is_never_submitted_when_the_client_leaves_while_its_template_is_rendered(
    server, monkeypatch, is_streamed
):
    begun, may_end = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow_template(*args: Any, **kwargs: Any) -> str:
        loop.call_soon_threadsafe(begun.set)
        may_end.wait()
        return "rendered"

    monkeypatch.setattr(server.engine.tokenizer, "apply_chat_template", slow_template)
    connection = await server.send_and_hold("/v1/chat/completions", CHAT | {"stream": is_streamed})
    await begun.wait()

    connection.close()
    await server.until_counted('http_requests_total{handler="/v1/chat/completions",method="POST",status="499"}')
    may_end.set()

    answer = await server.http.post("/v1/completions", json={"prompt": "hello"})  # after everything before it
    assert answer.status_code == 200
    assert [request.request_id[:5] for request in server.engine.requests] == ["cmpl-"]


async def test_a_refused_prompt_takes_its_admitted_neighbours_with_it(serve):
    engine = FakeEngineClient(max_num_seqs=1, max_queued=2)
    server = await serve(engine)
    engine.hold()
    other = await server.send_and_hold("/v1/completions", {"prompt": "other"})
    await engine.wait_for(lambda: engine.num_open == 1)

    response = await server.http.post("/v1/completions", json={"prompt": ["a", "b", "c"]})

    assert response.status_code == 429
    await engine.wait_for(lambda: engine.num_open == 1)
    assert len(engine.aborted) == 2
    other.close()


async def test_a_failed_prompt_takes_its_open_neighbours_with_it(server):
    engine = server.engine
    engine.hold()
    asking = asyncio.create_task(server.http.post("/v1/completions", json={"prompt": ["a", "b", "c"]}))
    await engine.wait_for(lambda: engine.num_open == 3)

    engine.fail_request(engine.requests[1].request_id, "broken")

    assert (await asking).status_code == 500
    await engine.wait_for(lambda: engine.num_open == 0)
    assert len(engine.aborted) == 2


async def test_disconnects_are_counted_as_499(server):
    server.engine.hold()
    connection = await server.send_and_hold("/v1/completions", {"prompt": "hello"})
    await server.engine.wait_for(lambda: server.engine.num_open == 1)
    connection.close()
    await all_aborted(server.engine, 1)

    name = 'http_requests_total{handler="/v1/completions",method="POST",status="499"}'
    await server.until_counted(name)
    assert await server.figure(name) == 1


async def test_a_finished_request_is_not_aborted(server):
    await server.http.post("/v1/completions", json={"prompt": "hello"})
    await server.stream_events("/v1/completions", {"prompt": "hello"})

    assert server.engine.aborted == []


async def test_a_body_that_never_arrives_leaves_nothing_behind(server):
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    await writer.drain()
    writer.close()

    name = 'http_requests_total{handler="/v1/completions",method="POST",status="499"}'
    await server.until_counted(name)
    assert server.engine.requests == []


async def test_no_task_and_no_request_is_left_after_many_mixed_clients(server):
    engine, rng = server.engine, random.Random(7)
    await server.http.get("/health")
    before = asyncio.all_tasks()

    async def ask() -> None:
        path, body = rng.choice([("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": ["ab", "cd"]})])
        connection = await server.send_and_hold(path, body | {"stream": rng.random() < 0.5, "n": 2, "temperature": 1})
        for _ in range(rng.randrange(20)):
            await asyncio.sleep(0)
        connection.close()

    await asyncio.gather(*[ask() for _ in range(60)])
    await engine.wait_for(lambda: engine.num_open == 0)
    while asyncio.all_tasks() - before:
        await server.http.get("/health")

    assert engine.num_open == 0
