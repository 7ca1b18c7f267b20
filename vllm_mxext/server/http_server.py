"""uvicorn as this project runs it: its settings, and a server that leaves signals to its owner."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from vllm_mxext.config.server import ServerConfig
from vllm_mxext.server.http_protocol import BoundedHttpProtocol

KEEP_ALIVE_S = 75
"""Idle connections are kept longer than clients keep them, so that no request meets a closing connection."""

ABORT_FLUSH_S = 2
"""Seconds for the last bytes of aborted responses."""


class HttpServer(uvicorn.Server):
    """uvicorn without its own signal handling, and telling when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Opens the sockets."""
        await super().startup(sockets)
        self.is_listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


def uvicorn_config(app: ASGIApp, config: ServerConfig, on_tick: Any = None) -> uvicorn.Config:
    """Returns uvicorn's settings.

    Args:
        app: what answers.
        config: certificates and log level.
        on_tick: coroutine function that is called about once a second.
    """
    files: dict[str, Any] = {}
    if config.tls is not None:
        files = {
            "ssl_certfile": config.tls.certfile,
            "ssl_keyfile": config.tls.keyfile,
            "ssl_ca_certs": config.tls.ca_certs,
            "ssl_cert_reqs": config.tls.cert_reqs,
        }
    return uvicorn.Config(
        app,
        http=BoundedHttpProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level=config.http_log_level,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        callback_notify=on_tick,
        timeout_notify=0,
        **files,
    )
