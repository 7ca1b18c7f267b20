"""Answers: the same events however the network cuts them, and every way in which an answer is none."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_mxext.bench.serve.address import Address
from vllm_mxext.bench.serve.plan import RequestPlan
from vllm_mxext.bench.serve.request import Reply, StreamReader, request_body
from vllm_mxext.bench.serve.result import ClientLag
from vllm_mxext.bench.serve.watching import lag_reasons, parse_metrics
from vllm_mxext.bench.serve.wire import Wire
from vllm_mxext.client.chunks import TOKEN_FIELDS

EVENTS: list[dict[str, Any]] = [
    {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"delta": {"reasoning_content": "Hm"}}]},
    {"choices": [{"delta": {"content": "什么\n\ndata: x"}}], "usage": {"completion_tokens": 3}},
    {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": "{}"}}]}}]},
    {"choices": [{"delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 6}},
]


def stream(events: list[dict[str, Any]], end: str = "\n\n") -> bytes:
    texts = [f"data: {json.dumps(event, ensure_ascii=False)}{end}" for event in events]
    return (": ping" + end + "".join(texts) + "data: [DONE]" + end).encode()


def read(pieces: list[bytes], content_type: str = "text/event-stream; charset=utf-8") -> Reply:
    reply = Reply()
    reader = StreamReader(reply)
    for at, piece in enumerate(pieces):
        reader.feed(float(at), piece)
    reader.finish(content_type)
    return reply


@given(st.lists(st.integers(0, 600), max_size=12), st.sampled_from(["\n\n", "\r\n\r\n"]))
def test_events_are_the_same_however_they_are_cut(cuts: list[int], end: str) -> None:
    content = stream(EVENTS, end)
    ends = sorted({min(cut, len(content)) for cut in cuts} | {len(content)})
    reply = read([content[begin:end_] for begin, end_ in zip([0, *ends], ends, strict=False)])
    assert not reply.failure
    assert len(reply.chunk_times_s) == 3
    assert reply.text.startswith("Hm什么\n\ndata: x")
    assert (reply.usage["completion_tokens"], reply.finish_reason) == (6, "stop")
    assert len(reply.empty_times_s) == 2


@pytest.mark.promise("PERF-3")
def test_the_first_token_is_the_first_event_with_text() -> None:
    pieces = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in EVENTS]
    reply = read([*pieces, b"data: [DONE]\n\n"])
    assert (reply.chunk_times_s, reply.empty_times_s) == ([1.0, 2.0, 3.0], [0.0, 4.0])


@pytest.mark.parametrize("field", TOKEN_FIELDS)
def test_whatever_a_model_writes_is_text(field: str) -> None:
    reply = read([stream([{"choices": [{"delta": {field: {"a": "b"}}}]}])])
    assert (reply.failure, reply.chunk_times_s, reply.text) == ("", [0.0], '{"a":"b"}')


@pytest.mark.parametrize(
    ("content", "content_type", "failure"),
    [
        (stream(EVENTS), "application/json", "protocol"),
        (stream(EVENTS[:3]).removesuffix(b"data: [DONE]\n\n"), "text/event-stream", "disconnected"),
        (stream(EVENTS[:1]), "text/event-stream", "empty"),
        (b"data: {\n\n", "text/event-stream", "protocol"),
        (b"data: 5\n\n", "text/event-stream", "protocol"),
        (stream([*EVENTS[:3], {"error": {"message": "x"}}]), "text/event-stream", "server_error"),
        (stream([{"choices": [{"delta": 3}]}]), "text/event-stream", "protocol"),
    ],
)
def test_streams_that_are_no_answers_are_failures(content: bytes, content_type: str, failure: str) -> None:
    assert read([content], content_type).failure == failure


def test_an_answer_that_ends_at_once_is_no_failure_if_the_server_counted_its_token() -> None:
    reply = read([stream([{"choices": [], "usage": {"completion_tokens": 1}}])])
    assert (reply.failure, reply.chunk_times_s) == ("", [])


def test_bodies_ask_for_usage_and_only_for_what_was_given() -> None:
    body = json.loads(request_body(RequestPlan(), "m", "hi", 5))
    assert body == {
        "model": "m",
        "max_tokens": 5,
        "temperature": 0.7,
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    whole = json.loads(request_body(RequestPlan(stream=False, endpoint="completions", ignore_eos=True), "m", "hi", 5))
    assert (whole["prompt"], whole["stream"], whole["ignore_eos"]) == ("hi", False, True)
    assert "stream_options" not in whole


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://0.0.0.0:8000", Address("127.0.0.1", 8000, False, "")),
        ("https://h/v1/", Address("h", 443, True, "")),
        ("h:9/base/v1", Address("h", 9, False, "/base")),
        ("http://[::1]:8", Address("::1", 8, False, "")),
    ],
)
def test_addresses_are_read_as_people_write_them(url: str, address: Address) -> None:
    assert Address.parse(url) == address


def test_connections_are_used_again_and_one_that_the_server_has_closed_is_replaced() -> None:
    opened = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(writer)
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async def measure() -> list[bytes]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        wire = Wire(Address("127.0.0.1", server.sockets[0].getsockname()[1], False, ""))
        bodies = [bytes((await wire.send("GET", "/", timeout_s=60.0)).body) for _ in range(4)]
        wire.close()
        server.close()
        return bodies

    assert asyncio.run(measure()) == [b"hi"] * 4
    assert len(opened) == 2


def test_an_interim_answer_is_not_the_answer() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        writer.close()

    async def measure() -> tuple[int, bytes, dict[str, str]]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        wire = Wire(Address("127.0.0.1", server.sockets[0].getsockname()[1], False, ""))
        exchange = await wire.send("GET", "/", timeout_s=60.0)
        wire.close()
        server.close()
        return exchange.status, bytes(exchange.body), exchange.headers

    assert asyncio.run(measure()) == (200, b"hi", {"content-length": "2"})


def test_metrics_pages_are_read_without_buckets() -> None:
    page = b'# HELP a b\na{x="1 2"} 3\nb_bucket{le="1"} 4\nc_created 5\nd NaNo\ne 1e3\n\n'
    assert parse_metrics(page) == {'a{x="1 2"}': 3.0, "e": 1000.0}


@pytest.mark.promise("PERF-12")
@pytest.mark.parametrize(
    ("lag", "typical", "words"),
    [
        (ClientLag(0, 0.004, 0.1, 0.004, 0.2, 0.5, 1), 0.001, []),
        (ClientLag(0, 0.009, 0.1, None, None, 0.5, 1), 0.1, []),
        (ClientLag(0, 0.011, 0.1, None, None, 0.5, 1), 0.1, ["woke up 11.0 ms late"]),
        (ClientLag(0, 0.001, 0.1, 0.02, 0.2, 0.5, 1), 0.1, ["sent requests 20.0 ms late"]),
        (ClientLag(0, 0.001, 0.1, None, None, 0.95, 1), None, ["used 95%"]),
    ],
)
def test_a_client_that_could_not_keep_up_says_why(lag: ClientLag, typical: float | None, words: list[str]) -> None:
    reasons = lag_reasons("s", lag, typical)
    assert len(reasons) == len(words)
    assert all(word in reason for word, reason in zip(words, reasons, strict=True))


@pytest.mark.promise("PERF-6")
@pytest.mark.parametrize("usage", [[1], "3", 3, None, {"completion_tokens": None}])
def test_usage_that_is_none_does_not_end_a_run(usage: object) -> None:
    events: list[dict[str, Any]] = [
        {"choices": [{"delta": {"content": "a"}}], "usage": usage},
        {"choices": [{"delta": {}, "finish_reason": 5}]},
        {"choices": [], "usage": usage},
    ]
    reply = read([stream(events)])
    assert (reply.failure, reply.text, reply.finish_reason) == ("", "a", "5")
    assert not reply.usage.get("completion_tokens")
