"""`python -m vllm_mxext.tools.performance_tester`: `mxext bench serve` as documented, with a model that is named."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vllm_mxext.cli.bench_serve import run
from vllm_mxext.cli.main import with_exit_code

PROG = "python -m vllm_mxext.tools.performance_tester"


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Measures a server and returns the exit code.

    Args:
        argv: arguments after the program's name; those of the process by default.
        prog: name in help.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return with_exit_code(lambda: run(arguments, prog, asks_for_model=False))


if __name__ == "__main__":
    sys.exit(main())
