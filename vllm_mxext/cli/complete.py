"""`mxext complete`: one prompt to a running server or a model loaded here, its continuation to standard output."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence

from vllm_mxext.cli.connection import sampling_fields
from vllm_mxext.cli.talkers import add_talker_arguments, make_talker


def run(argv: Sequence[str]) -> int:
    """Streams one completion; returns the exit code."""
    parser = argparse.ArgumentParser(prog="mxext complete", description="Continue one prompt.")
    add_talker_arguments(parser)
    parser.add_argument("prompt", nargs="?", help="the prompt (default: standard input)")
    arguments, flags = parser.parse_known_args(argv)
    if arguments.prompt is None and sys.stdin.isatty():
        print("Type the prompt; Ctrl-D on a line of its own ends it.", file=sys.stderr)
    # The newline that ends a line of `echo` or of a file is no part of the prompt; models go on differently after it.
    prompt = sys.stdin.read().removesuffix("\n") if arguments.prompt is None else arguments.prompt
    with (
        make_talker(arguments, flags) as talker,
        contextlib.closing(talker.complete(prompt, sampling_fields(arguments))) as pieces,
    ):
        for piece in pieces:
            print(piece.text, end="", flush=True)
    print()
    return 0
