"""Runs `mxext bench kernels` where the package is on the path but not installed; the flags are the same."""

from __future__ import annotations

import sys

from vllm_mxext.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["bench", "kernels", *sys.argv[1:]]))
