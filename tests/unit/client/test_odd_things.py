"""What the caller gets for odd answers, odd requests, odd surroundings, and a client that is closed at a bad moment."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessage

from tests.client.endpoints import chat, endpoint, pipeline
from tests.client.fake_clock import FakeClock
from tests.client.fault_server import (
    Fault,
    FaultServer,
    Reply,
    Request,
    body,
    completion,
    delta,
    healthy,
    never_answer,
    status,
    stream,
)
from vllm_mxext.client.call import Call, Timeouts
from vllm_mxext.client.errors import (
    BadRequestError,
    ClientError,
    ClosedError,
    RateLimitedError,
    ServerError,
    StatusError,
    StreamInterruptedError,
)
from vllm_mxext.client.hedging import HedgePolicy
from vllm_mxext.client.metrics import CallRecord, ClientMetrics
from vllm_mxext.client.pipeline import Pipeline
from vllm_mxext.errors import ConfigError

pytestmark = pytest.mark.promise("CLIENT-9")


async def events_of(client: Pipeline) -> list[dict[str, Any]]:
    return [event async for event in client.stream(chat(stream=True))]


# --- answers ---


@pytest.mark.parametrize(
    "text", ['{"a": [NaN, -Infinity]}', '{"a": "\\ud83d"}', '{"a": 123456789012345678901234567890}']
)
async def test_json_of_servers_in_python_is_read(text: str) -> None:
    async with FaultServer([body(text), stream(text.encode().join((b"data: ", b"\n\n")), end="done")]) as server:
        client = pipeline(server.url)
        assert list((await client.call(chat())).body) == ["a"]
        assert [list(event) for event in await events_of(client)] == [["a"]]
        await client.close()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"error": {"code": "' + "9" * 5000 + '"}}', ServerError),
        ("[" * 60000, ClientError),
    ],
)
async def test_a_hostile_answer_is_a_typed_error(text: str, kind: type[ClientError]) -> None:
    async with FaultServer([body(text)]) as server:
        client = pipeline(server.url)
        with pytest.raises(kind):
            await client.call(chat())
        await client.close()


async def test_choices_with_odd_indexes_are_a_typed_error() -> None:
    async with FaultServer([stream({"choices": [{"index": [], "delta": {"content": "x"}}]})]) as server:
        client = pipeline(server.url)
        with pytest.raises(StreamInterruptedError):
            await events_of(client)
        await client.close()


async def test_a_status_without_a_place_to_go_on_is_no_redirection() -> None:
    async with FaultServer([status(304)]) as server:
        client = pipeline(server.url)
        with pytest.raises(StatusError, match="answered 304"):
            await client.call(chat())
        await client.close()


async def test_a_slow_reader_does_not_count_as_a_stalled_stream() -> None:
    sent = asyncio.Event()

    async def later(_: Request, reply: Reply) -> None:
        await reply.begin_stream()
        await reply.event(delta("a"))
        await sent.wait()
        await reply.event(delta("b", finish="stop"))
        await reply.end_stream()

    async with FaultServer([later]) as server:
        clock = FakeClock()
        client = Pipeline([endpoint(server.url)], pipeline().config, clock)
        events = client.stream(chat(stream=True))
        await anext(events)
        clock.tick(61.0)  # longer than the limit, which is the server's and not the reader's
        sent.set()
        assert (await anext(events))["choices"][0]["delta"] == {"content": "b"}
        await client.close()


# --- requests ---


async def test_every_attempt_sends_the_same_body() -> None:
    async with FaultServer([status(503), healthy]) as server:
        client = pipeline(server.url)
        await client.call(Call("/v1/completions", {"prompt": (word for word in ("a", "b"))}))
        assert [request.body for request in server.requests] == [{"prompt": ["a", "b"]}] * 2
        await client.close()


async def test_objects_of_pydantic_are_sent_as_their_fields() -> None:
    async with FaultServer([healthy]) as server:
        client = pipeline(server.url)
        await client.call(Call("/v1/completions", {"messages": [ChatCompletionMessage(role="assistant", content="x")]}))
        assert server.requests[0].body == {"messages": [{"role": "assistant", "content": "x"}]}
        await client.close()


@pytest.mark.parametrize(
    "call",
    [
        chat(headers={"X": 1}),
        chat(headers={"X": "ü"}),
        chat(headers={"X": "a\nb"}),
        Call("/v1/completions", {"prompt": b"abc"}),
        Call("/v1/completions", {"prompt": "\ud800"}),
        Call("/v1/completions", {"seed": 2**70}),
    ],
)
async def test_what_cannot_be_sent_is_a_typed_error_and_no_success(call: Call) -> None:
    async with FaultServer([healthy]) as server:
        client = pipeline(server.url)
        with pytest.raises(BadRequestError):
            await client.call(call)
        assert server.requests == []
        assert client.metrics.snapshot()["requests"]["by_outcome"] == {"BadRequestError": 1}
        await client.close()


@pytest.mark.parametrize("priority", [-1, 3, "high"])
def test_a_priority_that_does_not_exist_is_refused(priority: Any) -> None:
    with pytest.raises(ConfigError, match=r"0 \(high\), 1 \(normal\) or 2 \(low\), not"):
        chat(priority=priority)


@pytest.mark.parametrize("proxy", ["socks9://127.0.0.1:1", "ftp://127.0.0.1:1"])
async def test_a_proxy_that_cannot_be_used_is_told_with_the_variable(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    client = pipeline("http://127.0.0.1:1")
    with pytest.raises(ConfigError, match="ALL_PROXY"):
        await client.call(chat())
    assert client.metrics.snapshot()["requests"]["by_outcome"] == {"ConfigError": 1}
    await client.close()


async def test_a_port_that_cannot_be_is_refused() -> None:
    client = pipeline("http://127.0.0.1:99999")
    with pytest.raises(ConfigError, match="address must be one such as"):
        await client.call(chat())
    await client.close()


# --- cancelling and closing ---


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("num_cancels", [1, 2])
async def test_a_call_that_is_cancelled_at_any_await_leaves_nothing(is_stream: bool, num_cancels: int) -> None:
    async with FaultServer([healthy]) as server:
        client = pipeline(server.url, server.url, hedge=HedgePolicy(after_s=0.001))
        for num_steps in range(40):
            call = asyncio.ensure_future(events_of(client) if is_stream else client.call(chat()))
            for _ in range(num_cancels):
                for _ in range(num_steps):
                    await asyncio.sleep(0)
                call.cancel()
                num_steps = 1  # noqa: PLW2901 - the second comes while the first is under way
            await asyncio.gather(call, return_exceptions=True)

        async def until_idle() -> None:
            while client.num_running or server.num_open > 2:  # noqa: ASYNC110 - only a test that fails waits long
                await asyncio.sleep(0.001)

        await asyncio.wait_for(until_idle(), 30.0)
        assert client.num_queued == 0
        assert [one.outstanding_tokens for one in client.endpoints] == [0, 0]
        await client.close()


@contextlib.contextmanager
def full_backlog() -> Iterator[str]:
    """Yields the address of a server whose backlog is full, so that connecting takes for ever."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for one in waiting:
            one.close()


async def test_closing_ends_calls_that_connect() -> None:
    with full_backlog() as url:
        client = pipeline(url, timeouts=Timeouts(connect=None, total=None))
        call = asyncio.ensure_future(client.call(chat()))
        await asyncio.sleep(0.05)
        await client.close()
        with pytest.raises(ClosedError):
            await asyncio.wait_for(call, 30.0)
        assert client.num_running == 0


@pytest.mark.parametrize(
    "fault", [status(429, retry_after="60"), never_answer, stream(delta(role="assistant"), end="stall")]
)
async def test_closing_ends_calls_that_wait_for_an_answer_or_a_retry(fault: Fault) -> None:
    async with FaultServer([fault]) as server:
        client = pipeline(server.url, timeouts=Timeouts(total=None))
        calls = [asyncio.ensure_future(client.call(chat())), asyncio.ensure_future(events_of(client))]
        await server.until_asked(1)
        await asyncio.sleep(0.02)
        await client.close()
        for ended in await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30.0):
            assert isinstance(ended, ClosedError)
        assert client.num_running == client.num_queued == 0


def test_loops_one_after_another_leave_no_connections() -> None:
    started, ended = threading.Event(), threading.Event()
    urls: list[str] = []

    async def serve() -> None:
        async with FaultServer([healthy]) as server:
            urls.append(server.url)
            started.set()
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        started.wait()
        client = pipeline(urls[0])
        asyncio.run(client.call(chat()))
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            asyncio.run(client.call(chat()))
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) <= before + 25  # the server's ends may still be there
    finally:
        ended.set()
        thread.join()


# --- errors and figures ---


@pytest.mark.parametrize(
    "make",
    [
        lambda: StreamInterruptedError("broke", text="so far", endpoint_id="e"),
        lambda: RateLimitedError("too much", status=429, request_id="r", code="c"),
    ],
)
def test_errors_pass_between_processes(make: Callable[[], ClientError]) -> None:
    error = make()
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), str(copied), vars(copied)) == (type(error), str(error), vars(error))


def test_figures_of_any_model_name_can_be_written() -> None:
    metrics = ClientMetrics()
    metrics.record(CallRecord('\ud800"\n\\', "e", 1, "success", 1.0))
    assert 'model="?\\"\\n\\\\"' in metrics.prometheus()


# --- secrets ---


@pytest.mark.parametrize("around", [("bad key ", ""), ("x" * 480 + " ", "")])
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_key_that_a_server_repeats_is_shown_nowhere(
    around: tuple[str, str], is_stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    key = "sk-Secret0123456789abcdef"
    caplog.set_level("DEBUG", logger="vllm_mxext")
    async with FaultServer([status(500, key.join(around)), status(401, key.join(around))]) as server:
        client = pipeline(server.url)
        client.endpoints[0].api_key = key
        with pytest.raises(StatusError) as caught:
            await (events_of(client) if is_stream else client.call(chat()))
        said = repr((caught.value, caught.value.code, caught.value.attempts, client.metrics.recent)) + caplog.text
        assert key[:8].lower() not in said.lower()
        assert "***" in str(caught.value)
        await client.close()


def echo(header: str) -> Fault:
    """Returns a fault that answers well, and says a header of the request as often as it can."""

    async def fault(request: Request, reply: Reply) -> None:
        said, kind = request.headers[header], "text/event-stream" if request.is_stream else "application/json"
        await reply.send(f"HTTP/1.1 200 {said}\r\nx-request-id: {said}\r\ncontent-type: {kind}\r\n".encode())
        words = json.dumps(delta("a") if request.is_stream else completion()).encode()
        words = b"data: %b\n\n" % words if request.is_stream else words
        await reply.send(b"content-length: %d\r\n\r\n" % (len(words) + 10 * request.is_stream) + words)
        if request.is_stream:
            reply.reset()

    return fault


KEY = "sk-Secret0123456789abcdef"


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("header", "userinfo", "of_all", "of_one"),
    [
        ("authorization", "", {"Authorization": f"Bearer {KEY}"}, {}),
        ("authorization", f"me:{KEY}@", {}, {}),
        ("x-api-key", "", {}, {"X-API-Key": KEY}),
    ],
)
async def test_a_secret_that_a_server_sends_back_with_a_good_answer_is_neither_kept_nor_logged(
    header: str,
    userinfo: str,
    of_all: dict[str, str],
    of_one: dict[str, str],
    is_stream: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    async with FaultServer([echo(header)]) as server:
        client = pipeline(server.url.replace("//", f"//{userinfo}"), headers=of_all)
        call = chat(stream=is_stream, headers=of_one)
        if is_stream:
            events = client.stream(call)
            with pytest.raises(StreamInterruptedError) as caught:
                _ = [event async for event in events]
            names = [events.request_id, caught.value.request_id]
        else:
            names = [(await client.call(call)).request_id]
        sent = server.requests[0].headers[header].rpartition(" ")[2]
        said = repr((names, client.metrics.recent)) + caplog.text
        assert (sent in said, KEY in said) == (False, False)
        assert all("***" in name for name in names)
        await client.close()


# --- forks ---


def test_a_fork_while_another_thread_reads_the_figures_leaves_them_usable() -> None:
    metrics = ClientMetrics()
    with metrics._lock:  # as the other thread would hold it
        child = os.fork()
        if child == 0:
            is_free = metrics._lock.acquire(blocking=False)
            os._exit(0 if is_free else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
