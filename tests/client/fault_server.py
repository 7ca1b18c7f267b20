"""`FaultServer`: a server with OpenAI's API on 127.0.0.1 that fails as a script says, one request after another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

WORDS = ("The", " answer", " is", " 42", ".")


@dataclass
class Request:
    """What a client sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def is_stream(self) -> bool:
        return bool(self.body.get("stream"))


@dataclass
class Reply:
    """Writes an answer; everything is sent at once and closes the connection unless a fault says otherwise."""

    writer: asyncio.StreamWriter
    gone: asyncio.Event

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def whole(self, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}", f"content-length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join([*lines, "x-request-id: req-1", "", ""]).encode() + body)

    async def begin_stream(self, kind: str = "text/event-stream") -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\nx-request-id: req-1\r\n\r\n"
        await self.send(head.encode())

    async def chunk(self, data: bytes) -> None:
        await self.send(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def event(self, document: object) -> None:
        await self.chunk(b"data: " + json.dumps(document).encode() + b"\n\n")

    async def end_stream(self) -> None:
        await self.chunk(b"data: [DONE]\n\n")
        await self.send(b"0\r\n\r\n")

    async def until_gone(self) -> None:
        """Waits until the client has closed the connection."""
        await self.gone.wait()

    def reset(self) -> None:
        self.writer.transport.abort()


Fault = Callable[[Request, Reply], Awaitable[None]]


def delta(text: str = "", *, role: str | None = None, finish: str | None = None) -> dict[str, Any]:
    """Returns a chunk of a chat completion."""
    content: dict[str, Any] = {"role": role, "content": ""} if role else ({"content": text} if text else {})
    choice = {"index": 0, "delta": content, "finish_reason": finish}
    return {"id": "chat-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def completion(text: str = "".join(WORDS)) -> dict[str, Any]:
    """Returns a chat completion."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return {"id": "chat-1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}


async def healthy(request: Request, reply: Reply) -> None:
    """Answers as it should."""
    if not request.is_stream:
        await reply.whole(200, json.dumps(completion()).encode())
        return
    await reply.begin_stream()
    await reply.event(delta(role="assistant"))
    for word in WORDS:
        await reply.event(delta(word))
    await reply.event(delta(finish="stop"))
    await reply.end_stream()


async def never_answer(_: Request, reply: Reply) -> None:
    """Accepts the request and says nothing."""
    await reply.until_gone()


async def reset(_: Request, reply: Reply) -> None:
    """Breaks the connection before the first byte."""
    reply.reset()


def status(code: int, message: str = "no", *, kind: str = "application/json", **headers: str) -> Fault:
    """Returns a fault that answers with an error."""

    async def fault(_: Request, reply: Reply) -> None:
        body = {"error": {"message": message, "type": "x", "code": code}}
        await reply.whole(code, json.dumps(body).encode(), kind, **headers)

    return fault


def body(text: str, kind: str = "application/json") -> Fault:
    """Returns a fault that answers 200 with something else."""

    async def fault(_: Request, reply: Reply) -> None:
        await reply.whole(200, text.encode(), kind)

    return fault


def stream(*events: object, end: str = "close", kind: str = "text/event-stream") -> Fault:
    """Returns a fault that streams documents (or bytes as they are), and then stops.

    Args:
        events: sent.
        end: "done" as it should, "close" ends the body without `[DONE]`, "cut" breaks the connection, "stall" says no
            more, "keep-alive" sends only comments.
        kind: of content.
    """

    async def fault(_: Request, reply: Reply) -> None:
        await reply.begin_stream(kind)
        for event in events:
            await (reply.chunk(event) if isinstance(event, bytes) else reply.event(event))
        if end == "done":
            await reply.end_stream()
        elif end == "close":
            await reply.send(b"0\r\n\r\n")
        elif end == "cut":
            reply.reset()
        elif end == "keep-alive":
            while not reply.gone.is_set():
                await reply.chunk(b": keep-alive\n\n")
                await asyncio.sleep(0.01)
        else:
            await reply.until_gone()

    return fault


@dataclass
class FaultServer:
    """Answers the n-th request with the n-th fault, and further ones with the last. An asynchronous context.

    Attributes:
        faults: what happens.
        requests: what came.
        num_gone: requests whose client closed the connection before the answer was complete.
        num_connections: accepted.
    """

    faults: list[Fault]
    requests: list[Request] = field(default_factory=list)
    num_gone: int = 0
    num_connections: int = 0
    url: str = ""
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def __aenter__(self) -> FaultServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    @property
    def num_open(self) -> int:
        """Connections that stand."""
        return len(self._tasks)

    async def until_gone(self, number: int = 1) -> None:
        """Waits until so many clients have left."""
        while self.num_gone < number:  # noqa: ASYNC110 - only tests that fail wait long
            await asyncio.sleep(0.001)

    async def until_asked(self, number: int = 1) -> None:
        """Waits until so many requests have come."""
        while len(self.requests) < number:  # noqa: ASYNC110 - only tests that fail wait long
            await asyncio.sleep(0.001)

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.num_connections += 1
        try:
            while (request := await _read(reader)) is not None:
                self.requests.append(request)
                fault = self.faults[min(len(self.requests), len(self.faults)) - 1]
                await self._answer(fault, request, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client or the test has had enough
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _answer(
        self, fault: Fault, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        reply = Reply(writer, asyncio.Event())
        work = asyncio.ensure_future(fault(request, reply))
        # A client that sends no second request before the answer to the first makes this end only with the connection.
        watch = asyncio.ensure_future(_watch(reader))
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
            is_cut = work.done() and isinstance(work.exception(), ConnectionError)
            if not work.done() or is_cut:
                self.num_gone += 1
                reply.gone.set()
            await work
        finally:
            work.cancel()
            watch.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)


async def _watch(reader: asyncio.StreamReader) -> None:
    """Waits for the connection's end: an orderly one, or that of a client that left with something unread."""
    while not reader.at_eof() and reader.exception() is None:  # noqa: ASYNC110 - a reader has no event for it
        await asyncio.sleep(0.002)


async def _read(reader: asyncio.StreamReader) -> Request | None:
    first = (await reader.readline()).decode()
    if not first:
        return None
    method, path, _ = first.split(" ", 2)
    headers: dict[str, str] = {}
    while line := (await reader.readline()).decode().strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    data = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, json.loads(data) if data else {})
