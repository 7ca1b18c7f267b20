"""`python -m vllm_mxext.tools.lora_manager`: the same as `mxext lora`."""

from __future__ import annotations

import sys

from vllm_mxext.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["lora", *sys.argv[1:]]))
