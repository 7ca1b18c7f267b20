"""The server as a program: configuration -> engine client -> application -> HTTP server.

`python -m vllm_mxext.entrypoints.openai.api_server` is the same as `mxext serve`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_mxext import envs
from vllm_mxext.config.app import AppConfig, parse_serve_args
from vllm_mxext.config.resolve import ResolvedConfig, resolve
from vllm_mxext.config.table import format_table
from vllm_mxext.engine.factory import create_engine_client
from vllm_mxext.errors import ConfigError, MxError
from vllm_mxext.logger import LogSettings, configure_logging, init_logger
from vllm_mxext.observability.metrics import PrometheusMetrics
from vllm_mxext.server.app import create_app
from vllm_mxext.server.lifecycle import ServerProcess
from vllm_mxext.server.listen import check_tls, open_socket

PROG = "python -m vllm_mxext.entrypoints.openai.api_server"

EXIT_FAILED = 1
EXIT_USAGE = 2

logger = init_logger(__name__)


def run(app: AppConfig) -> int:
    """Serves until a signal ends it; returns the exit code 0.

    Raises:
        ConfigError: the configuration is wrong, or the port or certificate cannot be used; nothing was loaded.
        EngineDeadError: the engine could not be started, or was lost for good.
    """
    configure_logging(LogSettings.from_environ(config_path=app.server.log_config_file))
    resolved = resolve(app)
    for warning in app.warnings:
        logger.warning("%s", warning)
    logger.info("Configuration:\n%s", format_table(resolved))
    if resolved.server.tls is not None:
        check_tls(resolved.server.tls)
    _run_loop(_serve(resolved, _core_environ(app.server.log_config_file)))
    return 0


async def _serve(resolved: ResolvedConfig, core_environ: Mapping[str, str]) -> None:
    model, config = resolved.engine.model, resolved.server
    with open_socket(config) as sock:
        metrics = PrometheusMetrics(model.served_model_names[0], model.max_model_len)
        client = create_engine_client(resolved.engine, resolved.frontend, recorder=metrics, environ=core_environ)
        await ServerProcess(client, create_app(client, config, metrics), config, sock).run()


def _core_environ(log_config_file: Path | None) -> dict[str, str]:
    """Variables that make the engine process log as this one does."""
    return {} if log_config_file is None else {envs.LOGGING_CONFIG_PATH.name: str(log_config_file.absolute())}


def _run_loop(main: Coroutine[Any, Any, None]) -> None:
    if sys.platform == "win32":
        asyncio.run(main)
    else:
        import uvloop  # noqa: PLC0415 - does not exist on Windows

        uvloop.run(main)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; a failure's cause is the last line on standard error.

    Args:
        argv: arguments after the program's name; those of the process by default.

    Returns:
        0 after an orderly end, 1 if the engine failed, 2 if something given was wrong.
    """
    try:
        return run(parse_serve_args(sys.argv[1:] if argv is None else argv, prog=PROG))
    except ConfigError as error:
        sys.stderr.write(f"{PROG}: error: {error}\n")
        return EXIT_USAGE
    except MxError as error:
        sys.stderr.write(f"{PROG}: {error}\n")
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
