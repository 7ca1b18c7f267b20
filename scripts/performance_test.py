"""Measures a running server: the same as `python -m vllm_mxext.tools.performance_tester`."""

from __future__ import annotations

import sys

from vllm_mxext.tools.performance_tester import main

if __name__ == "__main__":
    sys.exit(main(prog="performance_test.py"))
