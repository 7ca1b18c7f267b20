"""Puts the running server together: engine client, application and HTTP server."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

from vllm_mxext.config.app import AppConfig
from vllm_mxext.config.hub import resolve_hub
from vllm_mxext.config.resolve import ResolvedConfig
from vllm_mxext.engine.factory import create_engine_client
from vllm_mxext.entrypoints.starting import Start
from vllm_mxext.errors import ConfigError
from vllm_mxext.hub.store.in_use import using
from vllm_mxext.native.core_client import ProcessCoreClient
from vllm_mxext.observability.metrics import PrometheusMetrics
from vllm_mxext.server.adapters import ServedAdapters
from vllm_mxext.server.app import create_app
from vllm_mxext.server.clock import SystemClock
from vllm_mxext.server.lifecycle import ServerProcess
from vllm_mxext.server.served_hub import ServedHub


def serve(
    resolved: ResolvedConfig,
    start: Start,
    sock: socket.socket,
    core: ProcessCoreClient,
    core_environ: Mapping[str, str],
) -> None:
    """Serves until a signal ends it.

    Args:
        resolved: the configuration.
        start: what it was resolved from, with what the hub knows of the model.
        sock: listening socket.
        core: the first engine process.
        core_environ: variables of later engine processes in addition to those of this one.

    Raises:
        ConfigError: the tokenizer, the chat template or an adapter cannot be loaded.
        EngineDeadError: the engine could not be started, or was lost for good.
    """
    snapshot = None if start.served is None else start.served.snapshot
    with using(None if snapshot is None else snapshot.folder):
        _run_loop(_serve(resolved, start, sock, core, core_environ))


async def _serve(
    resolved: ResolvedConfig,
    start: Start,
    sock: socket.socket,
    core: ProcessCoreClient,
    core_environ: Mapping[str, str],
) -> None:
    model, config = resolved.engine.model, resolved.server
    metrics = PrometheusMetrics(model.served_model_names[0], model.max_model_len)
    client = create_engine_client(
        resolved.engine, resolved.frontend, recorder=metrics, environ=core_environ, first_core=core
    )
    clock = SystemClock()
    adapters = ServedAdapters(client, config.lora, clock, lambda uri: _fetched(uri, resolved))
    hub = ServedHub(model.path, model.served_model_names[0], start.served, _store_folder(resolved.app), start.downloads)
    app = create_app(client, config, metrics, clock=clock, adapters=adapters, hub=hub)
    await ServerProcess(client, app, config, sock, adapters).run()


def _store_folder(app: AppConfig) -> Path | None:
    """Returns where models are stored; None if there is no such place, which is no trouble to what runs already."""
    try:
        return resolve_hub(app).folder
    except ConfigError:
        return None


def _fetched(uri: str, resolved: ResolvedConfig) -> Path:
    """Returns the folder of an adapter that a source has."""
    from vllm_mxext.hub.mx_download import Downloading  # noqa: PLC0415 - few servers load adapters from afar
    from vllm_mxext.hub.references import local_copy  # noqa: PLC0415

    return local_copy(uri, resolve_hub(resolved.app), Downloading())


def _run_loop(main: Coroutine[Any, Any, None]) -> None:
    if sys.platform == "win32":
        asyncio.run(main)
    else:
        import uvloop  # noqa: PLC0415 - does not exist on Windows

        uvloop.run(main)
