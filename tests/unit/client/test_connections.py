"""Connections: which are used again, which are not, and that none is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from tests.client.endpoints import closed_port
from vllm_mxext.client.connections import MAX_IDLE, Connections

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Server:
    """Answers every request on a connection, and counts connections; `closes` ends one after each answer."""

    def __init__(self) -> None:
        self.url = ""
        self.num_connections = 0
        self.closes = False
        self.opened: set[asyncio.StreamWriter] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self.opened.add(writer)
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(ANSWER)
                if self.closes:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.opened.discard(writer)
            writer.close()


@asynccontextmanager
async def served(keep_alive_s: float = 60.0) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    server = Server()
    listening = await asyncio.start_server(server.connected, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
    async with httpx.AsyncClient(transport=Connections(keep_alive_s, None)) as client:
        yield server, client
    while server.opened:  # noqa: ASYNC110 - the sockets tell
        await asyncio.sleep(0.001)
    listening.close()


async def test_one_call_after_the_other_uses_one_connection() -> None:
    async with served() as (server, client):
        for _ in range(5):
            assert (await client.get(server.url)).text == "ok"
        assert server.num_connections == 1


async def test_as_many_at_once_use_as_many_connections_and_then_the_same_again() -> None:
    async with served() as (server, client):
        for _ in range(3):
            await asyncio.gather(*(client.get(server.url) for _ in range(20)))
        assert server.num_connections == 20


async def test_of_very_many_connections_only_so_many_are_kept() -> None:
    async with served() as (server, client):
        await asyncio.gather(*(client.get(server.url) for _ in range(MAX_IDLE + 20)))
        while len(server.opened) > MAX_IDLE:  # noqa: ASYNC110 - the sockets tell
            await asyncio.sleep(0.001)
        await client.get(server.url)
        assert server.num_connections == MAX_IDLE + 20


async def test_a_connection_that_the_server_has_closed_is_not_used_again() -> None:
    async with served() as (server, client):
        server.closes = True
        for number in range(1, 4):
            assert (await client.get(server.url)).text == "ok"
            while server.opened:  # noqa: ASYNC110 - the sockets tell
                await asyncio.sleep(0.001)
            await asyncio.sleep(0)
            assert server.num_connections == number


async def test_an_idle_connection_that_is_too_old_is_closed() -> None:
    async with served(keep_alive_s=0.0) as (server, client):
        await client.get(server.url)
        await client.get(server.url)
        assert server.num_connections == 2


async def test_an_answer_that_is_not_read_to_its_end_takes_its_connection_along() -> None:
    async with served() as (server, client):
        async with client.stream("GET", server.url):
            pass
        await client.get(server.url)
        assert server.num_connections == 2


async def test_what_goes_wrong_has_the_names_of_httpx() -> None:
    async with httpx.AsyncClient(transport=Connections(1.0, None)) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(closed_port())
