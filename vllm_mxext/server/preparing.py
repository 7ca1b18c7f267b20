"""`serve_while()`: the port is open while the model is still being downloaded, and health checks say how far it is."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_mxext.config.server import ServerConfig
from vllm_mxext.engine.client import EnginePhase, EngineStatus
from vllm_mxext.errors import EngineNotReadyError, MxError
from vllm_mxext.hub.progress import Listener, Phase, Progress
from vllm_mxext.logger import init_logger
from vllm_mxext.observability.download_metrics import DownloadMetrics
from vllm_mxext.server.context import version_report
from vllm_mxext.server.downloads import Downloads
from vllm_mxext.server.errors import describe
from vllm_mxext.server.handover import HandoverServer, OneRequestPerConnection
from vllm_mxext.server.http_server import uvicorn_config
from vllm_mxext.server.json_response import json_response
from vllm_mxext.server.lifecycle import SIGNALS
from vllm_mxext.server.listen import describe_socket
from vllm_mxext.server.middleware.guards import guards
from vllm_mxext.server.middleware.paths import (
    DOWNLOADS_PATH,
    LIVE_PATH,
    METRICS_PATH,
    VERSION_PATH,
    RootPathMiddleware,
    route_path,
)
from vllm_mxext.server.middleware.readiness import explain

logger = init_logger(__name__)

T = TypeVar("T")

_NOTHING_YET = Progress("", Phase.CHOOSING)


class StoppedError(MxError):
    """A signal ended the server before its model was there; as after any other signal, the exit code is 0."""


def serve_while(
    work: Callable[[Listener, threading.Event], T],
    config: ServerConfig,
    sock: socket.socket,
    downloads: Downloads | None = None,
) -> T:
    """Does the work in a thread while the port answers, and returns what it returned.

    Whoever connects when the work is done waits for what listens on the socket next: it stays open and listening.
    Signals are handled if this is the main thread: the first one sets the work's event and waits for its end, the
    second one does not wait.

    Args:
        work: is given a listener for its progress, and an event that tells it to stop.
        config: certificates, keys and paths of the server.
        sock: listening socket.
        downloads: remembers the progress.

    Raises:
        StoppedError: a signal came.
        BaseException: whatever the work raised.
    """
    try:
        return _Preparation(work, config, downloads or Downloads()).run(sock)
    except BaseException:
        if config.uds is not None:  # nobody is going to listen there
            config.uds.unlink(missing_ok=True)
        raise


class _Preparation(Generic[T]):
    def __init__(
        self, work: Callable[[Listener, threading.Event], T], config: ServerConfig, downloads: Downloads
    ) -> None:
        self._work = work
        self._config = config
        self._downloads = downloads
        self._result: Future[T] = Future()
        self._must_stop = threading.Event()
        self._num_signals = 0
        self._is_over = asyncio.Event()

    def run(self, sock: socket.socket) -> T:
        app = preparing_app(self._config, self._downloads, self._must_stop.is_set)
        server = HandoverServer(uvicorn_config(app, self._config))
        address = describe_socket(sock, is_tls=self._config.tls is not None)
        logger.info("Listening on %s; requests get 503 until the model is loaded.", address)
        asyncio.run(self._serve(server, sock.dup()))
        if self._num_signals:
            raise StoppedError("The server was stopped before its model was there.")
        return self._result.result()

    async def _serve(self, server: HandoverServer, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with self._signals_handled(loop):
            serving = asyncio.create_task(server.serve(sockets=[sock]))
            serving.add_done_callback(lambda _: self._is_over.set())
            threading.Thread(target=self._do_work, args=(loop,), name="preparing", daemon=True).start()
            await self._is_over.wait()
            server.should_exit = True
            await serving

    def _do_work(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._result.set_result(self._work(self._downloads.listen, self._must_stop))
        except BaseException as error:  # run() raises it again
            self._result.set_exception(error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: a second signal came
            loop.call_soon_threadsafe(self._is_over.set)

    @contextlib.contextmanager
    def _signals_handled(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        numbers = SIGNALS if threading.current_thread() is threading.main_thread() else ()
        for number in numbers:
            loop.add_signal_handler(number, self._handle_signal)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _handle_signal(self) -> None:
        self._num_signals += 1
        self._must_stop.set()
        if self._num_signals == 1:
            logger.info("Stopping before the model is there; a second signal does not wait for what is under way.")
        else:
            self._is_over.set()


def preparing_app(config: ServerConfig, downloads: Downloads, is_stopping: Callable[[], bool]) -> ASGIApp:
    """Returns the application that stands in for the server's while there is no model.

    It has the server's guards but for `--middleware`, whose layers may count on there being a model.

    Args:
        config: keys and paths.
        downloads: how far the model is.
        is_stopping: whether the server is about to end.
    """
    layers = [Middleware(OneRequestPerConnection, config.max_request_body_bytes)]
    if config.root_path:
        layers.append(Middleware(RootPathMiddleware, config.root_path))
    app: ASGIApp = Router(default=_Answers(downloads, is_stopping))
    for layer, arguments, options in reversed([*layers, *guards(config)]):
        app = layer(app, *arguments, **options)
    return app


class _Answers:
    """What can be said without a model; everything else is 503."""

    def __init__(self, downloads: Downloads, is_stopping: Callable[[], bool]) -> None:
        self._downloads = downloads
        self._is_stopping = is_stopping
        self._registry = CollectorRegistry()
        self._registry.register(DownloadMetrics(lambda: downloads.progress))
        ProcessCollector(registry=self._registry)
        self._by_path: dict[str, Callable[[Request], Response]] = {
            LIVE_PATH: lambda _: json_response(self._live()),
            VERSION_PATH: lambda _: json_response(version_report()),
            DOWNLOADS_PATH: lambda _: json_response(downloads.listing()),
            METRICS_PATH: self._metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._by_path.get(route_path(scope)) if scope["method"] in ("GET", "HEAD") else None
        response = self._not_ready() if answer is None else answer(Request(scope))
        await response(scope, receive, send)

    @property
    def _progress(self) -> Progress:
        return self._downloads.progress or _NOTHING_YET

    def _live(self) -> dict[str, Any]:
        phase = EnginePhase.DRAINING if self._is_stopping() else self._progress.phase
        return {"status": "live", "phase": phase.value}

    def _not_ready(self) -> Response:
        draining = EngineStatus(EnginePhase.DRAINING)
        text = explain(draining) if self._is_stopping() else explain_progress(self._progress)
        return describe(EngineNotReadyError(text)).response()

    def _metrics(self, request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._registry), headers={"Content-Type": content_type})


def explain_progress(progress: Progress) -> str:
    """Says in one sentence, in the words of the server that loads its model, how far the download is."""
    steps = " ".join(part for part in (progress.phase.value, progress.model) if part)
    files = f"{progress.num_files_done} of {progress.num_files} files" if progress.num_files else ""
    return ", ".join(
        part for part in (f"The model is loading: {steps}", files, progress.detail, f"{progress.fraction:.0%}") if part
    )
