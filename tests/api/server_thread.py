"""A server over the scripted engine on a thread of its own, for clients that block."""

from __future__ import annotations

import asyncio
import threading

import uvicorn

from vllm_mxext.config.server import LoRAServingConfig, ServerConfig
from vllm_mxext.engine.backends.fake import FakeEngineClient
from vllm_mxext.server.app import create_app
from vllm_mxext.server.http_server import uvicorn_config
from vllm_mxext.server.listen import open_socket


class ServerThread:
    """A server on an event loop of its own; signals, which `ServerProcess` handles, are for main threads only."""

    def __init__(self) -> None:
        self.engine = FakeEngineClient(max_loras=2)
        self.num_cases = 0
        self._sock = open_socket(ServerConfig(port=0))
        self.url = f"http://127.0.0.1:{self._sock.getsockname()[1]}"
        lora = LoRAServingConfig(allows_updates=True)
        config = ServerConfig(lora=lora)
        self._server = uvicorn.Server(uvicorn_config(create_app(self.engine, config), config))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> ServerThread:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    async def _serve(self) -> None:
        await self.engine.start()
        await self._server.serve(sockets=[self._sock])
        await self.engine.shutdown()
