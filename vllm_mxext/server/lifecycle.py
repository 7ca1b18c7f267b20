"""`ServerProcess`: from the open port to the exit code: start-up, signals, drain, and the engine's end."""

from __future__ import annotations

import asyncio
import math
import signal
import socket

from starlette.types import ASGIApp

from vllm_mxext.config.server import ServerConfig
from vllm_mxext.engine.client import EngineClient, EnginePhase
from vllm_mxext.errors import EngineDeadError
from vllm_mxext.logger import init_logger
from vllm_mxext.server.adapters import ServedAdapters
from vllm_mxext.server.http_server import ABORT_FLUSH_S, HttpServer, uvicorn_config
from vllm_mxext.server.listen import describe_socket

logger = init_logger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""What ends a server."""


class ServerProcess:
    """Serves until a signal or the engine's end.

    The first signal drains: new requests get 503, open ones go on for `shutdown_timeout_s`. The second one aborts them.

    Args:
        client: the engine, not started.
        app: the application over it.
        config: addresses, certificates and timeouts.
        sock: listening socket.
        adapters: the server's adapters, if it has any.
    """

    def __init__(
        self,
        client: EngineClient,
        app: ASGIApp,
        config: ServerConfig,
        sock: socket.socket,
        adapters: ServedAdapters | None = None,
    ) -> None:
        self._client = client
        self._adapters = adapters
        self._config = config
        self._sock = sock
        self._server = HttpServer(uvicorn_config(app, config, self._check_engine))
        self._ending: asyncio.Task[None] | None = None
        self._num_signals = 0
        self._failure: Exception | None = None

    async def wait_until_listening(self) -> None:
        """Returns once clients can connect."""
        await self._server.is_listening.wait()

    async def run(self) -> None:
        """Opens the port at once, starts the engine, and returns when everything is closed.

        Raises:
            EngineDeadError: the engine could not be started, or was lost for good; the text is the root cause.
            ConfigError: an adapter that is to be served from the start cannot be loaded.
        """
        loop = asyncio.get_running_loop()
        for signal_number in SIGNALS:
            loop.add_signal_handler(signal_number, self.handle_signal)
        starting = asyncio.create_task(self._start_engine())
        try:
            await self._server.serve(sockets=[self._sock])
        finally:
            for signal_number in SIGNALS:
                loop.remove_signal_handler(signal_number)
            await self._finish(starting)
            if self._config.uds is not None:
                self._config.uds.unlink(missing_ok=True)
        if self._failure is not None:
            raise self._failure

    def handle_signal(self) -> None:
        """Drains on the first call, aborts on the second."""
        self._num_signals += 1
        if self._num_signals == 1:
            timeout_s = self._config.shutdown_timeout_s
            logger.info("Draining: open requests have %g s; a second signal aborts them.", timeout_s)
            self._client.begin_drain()
            self._end_soon(timeout_s)
        elif self._server.should_exit:
            self._server.force_exit = True
        else:
            logger.warning("Aborting open requests.")
            self._end_soon(0.0)

    async def _start_engine(self) -> None:
        await self.wait_until_listening()
        address = describe_socket(self._sock, is_tls=self._config.tls is not None)
        logger.info("Listening on %s; requests get 503 until the model is loaded.", address)
        try:
            await self._client.start()
            if self._adapters is not None:
                await self._adapters.load_at_start()  # files are looked at while the model is loaded
            await self._client.wait_until_ready()
        except Exception as error:  # raised again by run(), when everything is closed
            if self._num_signals == 0:
                self._fail(error)
        else:
            names = ", ".join(self._client.model.served_names)
            logger.info("Serving %s on %s", names, address)
            if self._adapters is not None:
                await self._adapters.watch()

    async def _check_engine(self) -> None:
        """Called by the HTTP server about once a second."""
        status = self._client.status
        if status.phase is EnginePhase.DEAD and self._num_signals == 0:
            self._fail(EngineDeadError(status.detail or "The engine is gone."))

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
            self._end_soon(0.0)

    def _end_soon(self, timeout_s: float) -> None:
        self._ending = asyncio.create_task(self._end(self._ending, timeout_s))

    async def _end(self, previous: asyncio.Task[None] | None, timeout_s: float) -> None:
        if previous is not None:
            previous.cancel()
            await asyncio.wait((previous,))
        began_s = asyncio.get_running_loop().time()
        await self._client.shutdown(timeout_s)
        left_s = timeout_s - (asyncio.get_running_loop().time() - began_s)
        self._server.config.timeout_graceful_shutdown = max(ABORT_FLUSH_S, math.ceil(left_s))
        self._server.should_exit = True

    async def _finish(self, starting: asyncio.Task[None]) -> None:
        starting.cancel()
        await asyncio.wait((starting,))
        if self._ending is None:  # the HTTP server ended by itself
            self._end_soon(0.0)
        if self._ending is not None:
            await self._ending
