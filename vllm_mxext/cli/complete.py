"""`mxext complete`: one prompt to a running server, its continuation to standard output."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vllm_mxext.cli.connection import Connection, add_connection_arguments, sampling_fields


def run(argv: Sequence[str]) -> int:
    """Streams one completion; returns the exit code."""
    parser = argparse.ArgumentParser(prog="mxext complete", description="Send one prompt to a running server.")
    add_connection_arguments(parser)
    parser.add_argument("prompt", nargs="?", help="the prompt (default: standard input)")
    arguments = parser.parse_args(argv)
    prompt = sys.stdin.read() if arguments.prompt is None else arguments.prompt
    with Connection(arguments.url, arguments.api_key) as connection:
        model = arguments.model or connection.first_model()
        body = {"model": model, "prompt": prompt, **sampling_fields(arguments)}
        for event in connection.stream("/v1/completions", body):
            for choice in event.get("choices", ()):
                print(choice["text"], end="", flush=True)
    print()
    return 0
