"""A server with known delays: OpenAI's chat and completions, streamed or not, and its own record of what it sent when.

`python -m tests.bench_servers.mock_server --port 8001 --behaviour '{"ttft_s": 0.05}'` runs it as a process of its own;
`GET /mock/records` gives its records, in the monotonic seconds of this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import random
import sys
import time
from dataclasses import dataclass, field
from typing import Any

_SPIN_S = 0.0015
"""Event loops sleep in whole milliseconds; the end of each wait is spent looking at the clock."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What the server does.

    Attributes:
        ttft_s: from the end of the request to the first text.
        gap_s: between events with text.
        tokens_per_chunk: tokens in each of these.
        output_tokens: of each answer; None = what the request allows.
        jitter_s: added to each delay, evenly from 0 to this.
        tail_s: between the last text and the end of the stream.
        has_usage: the answer ends with usage, if the request asks for it.
        role_chunk_s: when an event without text is sent before the first text; None = none.
        failures: number of a request (from 0) -> kind: status:N, disconnect, stall, cut, garbage, error_event,
            empty, html.
        is_precise: look at the clock at the end of each wait.
        seed: of the jitter.
        slots: requests served at once, others wait; 0 = all.
    """

    ttft_s: float = 0.0
    gap_s: float = 0.0
    tokens_per_chunk: int = 1
    output_tokens: int | None = None
    jitter_s: float = 0.0
    tail_s: float = 0.0
    has_usage: bool = True
    role_chunk_s: float | None = None
    failures: dict[int, str] = field(default_factory=dict)
    is_precise: bool = True
    seed: int = 0
    slots: int = 0

    @classmethod
    def parse(cls, text: str) -> Behaviour:
        """Reads JSON."""
        data = json.loads(text)
        data["failures"] = {int(number): kind for number, kind in data.get("failures", {}).items()}
        return cls(**data)


@dataclass(slots=True)
class Served:
    """What was sent when; monotonic seconds.

    Attributes:
        number: of the request.
        received_s: when the request was complete.
        texts_s: when each event with text was handed to the kernel.
        ended_s: when the end was.
        num_tokens: of the answer.
        body: the request's JSON.
    """

    number: int
    received_s: float
    texts_s: list[float] = field(default_factory=list)
    ended_s: float = 0.0
    num_tokens: int = 0
    body: dict[str, Any] = field(default_factory=dict)


class MockServer:
    """The server; an async context manager.

    Args:
        behaviour: what it does.
        port: 0 = any free one.

    Attributes:
        url: its address.
        served: every request, in order.
    """

    def __init__(self, behaviour: Behaviour | None = None, port: int = 0) -> None:
        self.behaviour = behaviour or Behaviour()
        self.served: list[Served] = []
        self.url = ""
        self._port = port
        self._random = random.Random(self.behaviour.seed)
        self._slots = asyncio.Semaphore(self.behaviour.slots or sys.maxsize)
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}
        self._stopped = asyncio.Event()

    async def __aenter__(self) -> MockServer:
        """Listens."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self._port)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops listening."""
        assert self._server is not None
        self._server.close()
        tasks = [task for task in self._connections.values() if task is not None]
        for writer in self._connections:
            writer.transport.abort()
        self._stopped.set()
        await asyncio.gather(*tasks)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections[writer] = asyncio.current_task()
        try:
            while await self._request(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            del self._connections[writer]
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, path, _ = head.split("\r\n", 1)[0].split(" ")
        lengths = [line.split(":")[1] for line in head.split("\r\n") if line.lower().startswith("content-length:")]
        raw = await reader.readexactly(int(lengths[0])) if lengths else b""
        body = json.loads(raw) if raw else {}
        if path == "/metrics":
            text = f'mock:requests_total{{model="m"}} {len(self.served)}\nmock:running 1\n'
            _write(writer, 200, text.encode(), "text/plain")
        elif path == "/mock/records":
            _write(writer, 200, json.dumps([dataclasses.asdict(one) for one in self.served]).encode())
        elif path == "/v1/models":
            _write(writer, 200, b'{"data": [{"id": "m"}]}')
        elif path == "/tokenize":
            tokens = [sum(word.encode()) for word in body["prompt"].split()]
            _write(writer, 200, json.dumps({"count": len(tokens), "tokens": tokens}).encode())
        elif method == "POST" and path in ("/v1/chat/completions", "/v1/completions"):
            served = Served(len(self.served), time.monotonic(), body=body)
            self.served.append(served)
            async with self._slots:
                return await self._generate(writer, served, is_chat="chat" in path)
        else:
            _write(writer, 404, b"{}")
        return True

    async def _generate(self, writer: asyncio.StreamWriter, served: Served, *, is_chat: bool) -> bool:
        behaviour, body = self.behaviour, served.body
        failure = behaviour.failures.get(served.number, "")
        if failure == "disconnect":
            return False
        if failure == "stall":
            await self._stopped.wait()
            return False
        if failure.startswith("status:"):
            _write(writer, int(failure[7:]), b'{"error": {"message": "no"}}')
            return True
        if failure == "html":
            _write(writer, 200, b"<html>Welcome</html>", "text/html")
            return True
        served.num_tokens = behaviour.output_tokens or int(
            body.get("max_tokens") or body.get("max_completion_tokens") or 16
        )
        begin = time.monotonic()
        if not body.get("stream"):
            chunks = -(-served.num_tokens // behaviour.tokens_per_chunk)
            await self._until(begin + behaviour.ttft_s + (chunks - 1) * behaviour.gap_s)
            _write(writer, 200, json.dumps(self._whole(served, is_chat)).encode())
            served.ended_s = time.monotonic()
            return True
        return await self._stream(writer, served, begin, failure, is_chat=is_chat)

    async def _stream(
        self, writer: asyncio.StreamWriter, served: Served, begin: float, failure: str, *, is_chat: bool
    ) -> bool:
        behaviour = self.behaviour
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        if behaviour.role_chunk_s is not None:
            await self._until(begin + behaviour.role_chunk_s)
            _event(writer, _chunk(is_chat, ""))
        options = served.body.get("stream_options") or {}
        left = 0 if failure == "empty" else served.num_tokens
        due = begin + behaviour.ttft_s
        while left > 0:
            await self._until(due + self._random.uniform(0, behaviour.jitter_s))
            count = min(behaviour.tokens_per_chunk, left)
            left -= count
            usage = self._usage(served, served.num_tokens - left) if options.get("continuous_usage_stats") else None
            if failure == "garbage" and served.texts_s:
                _raw(writer, b"data: {broken\n\n")
            _event(writer, _chunk(is_chat, " w" * count, usage=usage))
            served.texts_s.append(time.monotonic())
            if len(served.texts_s) % 64 == 0:
                await writer.drain()
            due = max(due + behaviour.gap_s, begin)
            if failure == "cut":
                return False
            if failure == "error_event":
                _event(writer, b'{"error": {"message": "out of memory", "code": 500}}')
                left = 0
        await self._until(due - behaviour.gap_s + behaviour.tail_s)
        if failure != "empty":
            _event(writer, _chunk(is_chat, "", finish="length"))
            if behaviour.has_usage and options.get("include_usage"):
                _event(writer, json.dumps({"choices": [], "usage": self._usage(served, served.num_tokens)}).encode())
        _raw(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        served.ended_s = time.monotonic()
        await writer.drain()
        return True

    def _whole(self, served: Served, is_chat: bool) -> dict[str, Any]:
        text = " w" * served.num_tokens
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        choice.update({"message": {"role": "assistant", "content": text}} if is_chat else {"text": text})
        usage = {"usage": self._usage(served, served.num_tokens)} if self.behaviour.has_usage else {}
        return {"choices": [choice], **usage}

    def _usage(self, served: Served, num_tokens: int) -> dict[str, Any]:
        body = served.body
        if "messages" in body:
            count = sum(len(_text(message["content"]).split()) for message in body["messages"])
        else:
            count = len(body["prompt"].split() if isinstance(body["prompt"], str) else body["prompt"])
        return {"prompt_tokens": count, "completion_tokens": num_tokens, "total_tokens": count + num_tokens}

    async def _until(self, due: float) -> None:
        """Waits to well below a millisecond."""
        left = due - time.monotonic()
        if not self.behaviour.is_precise:
            await asyncio.sleep(max(left, 0))
            return
        if left > _SPIN_S:
            await asyncio.sleep(left - _SPIN_S)
        while time.monotonic() < due:  # noqa: ASYNC110 - the clock itself is waited for
            await asyncio.sleep(0)


def _text(content: str | list[dict[str, str]]) -> str:
    return content if isinstance(content, str) else " ".join(part["text"] for part in content)


def _chunk(is_chat: bool, text: str, finish: str | None = None, usage: dict[str, Any] | None = None) -> bytes:
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
    choice.update({"delta": {"content": text}} if is_chat else {"text": text})
    event: dict[str, Any] = {"id": "mock", "object": "chunk", "created": 0, "model": "m", "choices": [choice]}
    if usage is not None:
        event["usage"] = usage
    return json.dumps(event).encode()


def _event(writer: asyncio.StreamWriter, payload: bytes) -> None:
    _raw(writer, b"data: " + payload + b"\n\n")


def _raw(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def _write(writer: asyncio.StreamWriter, status: int, body: bytes, kind: str = "application/json") -> None:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


async def _serve(behaviour: Behaviour, port: int) -> None:
    async with MockServer(behaviour, port) as server:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


def main() -> None:
    """Runs the server until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--behaviour", type=Behaviour.parse, default=Behaviour())
    arguments = parser.parse_args()
    try:
        asyncio.run(_serve(arguments.behaviour, arguments.port))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
