"""A real server on a free port of 127.0.0.1, over the scripted engine, in the test's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import httpx
import openai
import orjson
import pytest
import pytest_asyncio
import uvicorn.server
from fastapi import FastAPI

from tests.api.talking import PARSERS, saying
from vllm_mxext.config.server import ParserConfig, ServerConfig
from vllm_mxext.engine.backends.fake import FakeEngineClient
from vllm_mxext.server.adapters import ServedAdapters
from vllm_mxext.server.app import create_app
from vllm_mxext.server.clock import SystemClock
from vllm_mxext.server.lifecycle import ServerProcess
from vllm_mxext.server.listen import open_socket
from vllm_mxext.server.served_hub import ServedHub


class HastyAsyncio:
    """`asyncio` in which a sleep takes a fiftieth of its time."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 50)


@pytest.fixture(autouse=True, scope="module")
def _servers_that_end_at_once() -> Iterator[None]:
    """uvicorn sleeps for tenths of a second until it sees that it is to end, and again until it looks for open work."""
    with mock.patch.object(uvicorn.server, "asyncio", HastyAsyncio()):
        yield


class ManualClock:
    """Time that passes only when the test says so."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []
        self._changed = asyncio.Event()

    def monotonic(self) -> float:
        return self._now_s

    async def sleep(self, seconds: float) -> None:
        wake_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._now_s + seconds, wake_up))
        self._changed.set()
        await wake_up

    @property
    def num_sleepers(self) -> int:
        """Who waits for time to pass."""
        return sum(not wake_up.done() for _, wake_up in self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Waits until somebody sleeps, then lets that much time pass."""
        while not self.num_sleepers:
            self._changed.clear()
            await self._changed.wait()
        self._now_s += seconds
        for until_s, wake_up in self._sleepers:
            if until_s <= self._now_s and not wake_up.done():
                wake_up.set_result(None)
        self._sleepers = [(until_s, wake_up) for until_s, wake_up in self._sleepers if not wake_up.done()]


@dataclass
class RunningServer:
    """A server that listens."""

    engine: FakeEngineClient
    process: ServerProcess
    task: asyncio.Task[None]
    port: int
    http: httpx.AsyncClient
    app: FastAPI

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def openai(self, api_key: str = "none", *, is_strict: bool = True) -> openai.AsyncOpenAI:
        """The official client; a strict one refuses whatever does not fit its types.

        Streams of plain completions cannot be strict: the package's type demands a finish reason in every chunk, which
        OpenAI does not send either.
        """
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, _strict_response_validation=is_strict
        )

    def openai_sync(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True, **options
        )

    async def send_and_hold(self, path: str, body: dict[str, Any]) -> asyncio.StreamWriter:
        """Posts a request over a connection of its own and leaves the answer unread; closing it is a disconnect."""
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        content = orjson.dumps(body)
        writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
        await writer.drain()
        return writer

    async def figure(self, name: str) -> float:
        """The value of one line of `/metrics`; 0 if there is none yet."""
        for line in (await self.http.get("/metrics")).text.splitlines():
            if line.startswith(name):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    async def until_counted(self, name: str) -> None:
        """Asks for `/metrics` until that line is not 0 any more."""
        while await self.figure(name) == 0:
            pass

    def routes(self) -> list[tuple[str, str]]:
        """Every (method, path) the server has, from its OpenAPI description and the pages that describe it."""
        paths = self.app.openapi()["paths"]
        described = [(method.upper(), path) for path, methods in paths.items() for method in methods]
        return [*described, ("GET", "/docs"), ("GET", "/redoc"), ("GET", "/openapi.json")]

    async def stream_events(self, path: str, body: dict[str, Any]) -> list[str]:
        """Posts a streaming request and returns the lines of its answer that are not empty."""
        async with self.http.stream("POST", path, json={**body, "stream": True}) as response:
            assert response.status_code == 200, await response.aread()
            return [line async for line in response.aiter_lines() if line]


@asynccontextmanager
async def running_server(
    engine: FakeEngineClient | None = None,
    config: ServerConfig | None = None,
    clock: Any = None,
    hub: ServedHub | None = None,
) -> AsyncIterator[RunningServer]:
    engine = engine or FakeEngineClient()
    config = replace(config or ServerConfig(), port=0)
    sock = open_socket(config)
    clock = clock or SystemClock()
    adapters = ServedAdapters(engine, config.lora, clock)
    app = create_app(engine, config, clock=clock, adapters=adapters, hub=hub)
    process = ServerProcess(engine, app, config, sock, adapters)
    task = asyncio.create_task(process.run())
    await process.wait_until_listening()
    port = sock.getsockname()[1] if config.uds is None else 0
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=None) as http:
        server = RunningServer(engine, process, task, port, http, app)
        try:
            await engine.wait_for(lambda: engine.num_starts > 0)
            yield server
        finally:
            if not task.done():
                process.handle_signal()
                process.handle_signal()
            await asyncio.wait((task,))


Serve = Callable[..., Awaitable[RunningServer]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts servers that end with the test: `await serve(engine, config, clock, hub)`."""
    async with AsyncExitStack() as stack:

        async def start(
            engine: FakeEngineClient | None = None,
            config: ServerConfig | None = None,
            clock: Any = None,
            hub: ServedHub | None = None,
        ) -> RunningServer:
            return await stack.enter_async_context(running_server(engine, config, clock, hub))

        yield start


@pytest.fixture
async def server(serve: Serve) -> RunningServer:
    """A ready server with the default configuration and the echoing engine."""
    return await serve()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_server() -> AsyncIterator[RunningServer]:
    """One server for a whole module, for tests that leave it as it was."""
    async with running_server(config=ServerConfig(max_request_body_bytes=100_000)) as server:
        yield server


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def talk(serve):
    """`await talk(text, parsers)`: a server whose model says `text`."""

    async def start(text: str, parsers: ParserConfig = PARSERS, **config: Any) -> Any:
        engine = FakeEngineClient(saying(text), max_model_len=8192)
        return await serve(engine, ServerConfig(parsers=parsers, **config))

    return start
