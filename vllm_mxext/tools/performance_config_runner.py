"""`python -m vllm_mxext.tools.performance_config_runner FILE`: a performance test as a YAML file says."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vllm_mxext.cli.bench_serve import run_config
from vllm_mxext.cli.main import with_exit_code

PROG = "python -m vllm_mxext.tools.performance_config_runner"


def main(argv: Sequence[str] | None = None) -> int:
    """Measures a server and returns the exit code.

    Args:
        argv: arguments after the program's name; those of the process by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return with_exit_code(lambda: run_config(arguments, PROG))


if __name__ == "__main__":
    sys.exit(main())
