"""`mxext fit`: whether a model fits into memory, and how it would be computed, without loading it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from vllm_mxext.config.app import parse_serve_args
from vllm_mxext.config.resolve import resolve
from vllm_mxext.entrypoints.starting import stored_start
from vllm_mxext.errors import ConfigError

EXIT_DOES_NOT_FIT = 1


def run(argv: Sequence[str]) -> int:
    """Prints the report; returns 0 if the model fits, otherwise 1."""
    parser = argparse.ArgumentParser(
        prog="mxext fit",
        description="Print the memory plan and the kernels of a model without loading it. All flags of 'mxext serve' "
        "are taken, so that the command line of a server can be tried first.",
        usage="mxext fit [MODEL] [--json] [flags of mxext serve]",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments, flags = parser.parse_known_args(argv)
    start = stored_start(parse_serve_args(flags, prog="mxext fit"))
    if start is None:
        raise ConfigError(
            "The model is not on this machine; 'mxext hub explain MODEL' estimates it without downloading weights, and "
            "'mxext hub pull MODEL' downloads it."
        )
    from vllm_mxext.entrypoints.fit import fit_report  # noqa: PLC0415 - only now is there something to report

    report = fit_report(resolve(start.app))
    print(json.dumps(report.as_dict(), indent=2) if arguments.json else report)
    return 0 if report.fits else EXIT_DOES_NOT_FIT
