"""The server as a program: configuration -> engine client -> application -> HTTP server.

`python -m vllm_mxext.entrypoints.openai.api_server` is the same as `mxext serve`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from vllm_mxext import envs
from vllm_mxext.config.app import AppConfig, parse_serve_args
from vllm_mxext.config.engine import EngineConfig
from vllm_mxext.config.hub import without_effect
from vllm_mxext.config.resolve import ResolvedConfig, resolve
from vllm_mxext.config.resolve_server import resolve_server
from vllm_mxext.config.table import format_changes
from vllm_mxext.entrypoints.starting import Start, stored_start
from vllm_mxext.errors import ConfigError, MxError
from vllm_mxext.logger import LogSettings, configure_logging, init_logger
from vllm_mxext.native.core_client import ProcessCoreClient
from vllm_mxext.server.listen import check_tls, open_socket

PROG = "python -m vllm_mxext.entrypoints.openai.api_server"

EXIT_FAILED = 1
EXIT_USAGE = 2

logger = init_logger("vllm_mxext.entrypoints.openai.api_server")  # not __main__, which nobody configures


def run(app: AppConfig) -> int:
    """Serves until a signal ends it; returns the exit code 0.

    Raises:
        ConfigError: the configuration is wrong, or the port or certificate cannot be used; nothing was loaded.
        HubError: the model's files cannot be had, or none of its profiles can run.
        EngineDeadError: the engine could not be started, or was lost for good.
    """
    configure_logging(LogSettings.from_environ(config_path=app.server.log_config_file))
    for warning in (*app.warnings, *without_effect(app)):
        logger.warning("%s", warning)
    start = stored_start(app)
    resolved = None if start is None else _resolved(start)
    server = resolve_server(app.server) if resolved is None else resolved.server
    if server.tls is not None:
        check_tls(server.tls)
    with open_socket(server) as sock:
        if start is None or resolved is None:
            from vllm_mxext.entrypoints.openai.downloading import downloaded_start  # noqa: PLC0415 - imports the server

            start = downloaded_start(app, server, sock)
            if start is None:
                return 0
            resolved = _resolved(start)
        environ = _core_environ(app.server.log_config_file)
        core = launch_core(resolved.engine, environ)
        # Only now: torch and the HTTP server take about as long to import, so they are imported side by side.
        from vllm_mxext.entrypoints.openai.serving import serve  # noqa: PLC0415

        serve(resolved, start, sock, core, environ)
    return 0


def _resolved(start: Start) -> ResolvedConfig:
    resolved = resolve(start.app)
    changes = format_changes(resolved)
    logger.info("Configuration that differs from the defaults ('mxext hub config' shows all):\n%s", changes)
    return resolved


def launch_core(config: EngineConfig, environ: Mapping[str, str]) -> ProcessCoreClient:
    """Starts the engine process, which imports torch and waits for its configuration; it ends with this process.

    Args:
        config: the engine.
        environ: variables in addition to those of this process.
    """
    core = ProcessCoreClient(config, environ={**os.environ, **environ})
    core.launch()
    return core


def _core_environ(log_config_file: Path | None) -> dict[str, str]:
    """Variables that make the engine process log as this one does."""
    return {} if log_config_file is None else {envs.LOGGING_CONFIG_PATH.name: str(log_config_file.absolute())}


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Runs a command line; a failure's cause is the last line on standard error.

    Args:
        argv: arguments after the program's name; those of the process by default.
        prog: the program, for help and messages.

    Returns:
        0 after an orderly end, 1 if the engine failed, 2 if something given was wrong.
    """
    try:
        return run(parse_serve_args(sys.argv[1:] if argv is None else argv, prog=prog))
    except ConfigError as error:
        sys.stderr.write(f"{prog}: error: {error}\n")
        return EXIT_USAGE
    except MxError as error:
        sys.stderr.write(f"{prog}: {error}\n")
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
