#!/usr/bin/env python3
"""`python main.py COMMAND ...`: the same as `mxext COMMAND ...`, from a source folder."""

from __future__ import annotations

import sys

from vllm_mxext.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
