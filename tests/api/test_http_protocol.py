"""What is not proper HTTP, or never gets to its point, is refused in the shape of every other error."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from vllm_mxext.server.http_protocol import MAX_HEAD_BYTES


async def reply_to(port: int, *pieces: bytes) -> tuple[int, dict[str, Any]]:
    """Sends `pieces` until the server hangs up; returns status and error of its reply."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert b"content-type: application/json" in head
    return int(head.split()[1]), orjson.loads(body)["error"]


async def send_for_ever(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"a" * MAX_HEAD_BYTES)
        await writer.drain()


@pytest.mark.parametrize("data", [b"GET / HTTP/9\r\n\r\n", b"\x16\x03\x01\r\n\r\n", b"POST /x HTTP/1.1\r\nA b\r\n\r\n"])
async def test_what_is_not_http_is_400_with_the_error_object(server, data):
    status, error = await reply_to(server.port, data)
    assert (status, error["type"], error["code"]) == (400, "BadRequestError", 400)


@pytest.mark.parametrize("beginning", [b"GET /health HTTP/1.1\r\nX: ", b"GET /"], ids=["header", "url"])
async def test_a_head_that_does_not_end_is_431_instead_of_being_gathered(server, beginning):
    half = MAX_HEAD_BYTES // 2
    status, error = await reply_to(server.port, beginning, b"a" * half, b"a" * half)
    assert (status, error["code"]) == (431, 431)
    assert str(MAX_HEAD_BYTES) in error["message"]


async def test_trailers_that_do_not_end_cost_the_connection(server):
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: ")
    with pytest.raises(ConnectionError):
        await send_for_ever(writer)
    writer.close()
    assert (await server.http.get("/health")).status_code == 200


async def test_large_headers_and_much_larger_bodies_are_taken(server):
    response = await server.http.get("/health", headers={"X-Large": "a" * (MAX_HEAD_BYTES // 2)})
    assert response.status_code == 200

    async def pieces():
        yield b'{"prompt": "hello", "user": "'
        for _ in range(40):
            yield b"a" * (MAX_HEAD_BYTES // 8)
        yield b'"}'

    response = await server.http.post("/v1/completions", content=pieces())
    assert response.status_code == 200
