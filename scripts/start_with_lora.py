"""Starts the server with LoRA adapters: `--lora-config FILE` names the adapters, every flag of `mxext serve` works."""

from __future__ import annotations

import sys

from vllm_mxext.entrypoints.openai.api_server import main

if __name__ == "__main__":
    sys.exit(main(["--enable-lora", *sys.argv[1:]], prog="start_with_lora.py"))
