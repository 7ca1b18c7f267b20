"""`mxext serve`: reads the flags, so that help and mistakes are answered at once, then starts the server."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_mxext.config.app import parse_serve_args


def run(argv: Sequence[str]) -> int:
    """Serves until a signal ends it; returns the exit code."""
    app = parse_serve_args(argv)
    from vllm_mxext.entrypoints.openai import api_server  # noqa: PLC0415 - heavy, and not needed for --help

    return api_server.run(app)
