"""Runs our server for soak.py: SIGUSR1 makes it write its asyncio tasks to the file named by WATCH_FILE."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

from vllm_mxext.entrypoints.openai.api_server import main


def report(*_: object) -> None:
    """Writes the coroutines of all tasks with their counts, whole or not at all."""
    names = Counter(getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks())
    target = Path(os.environ["WATCH_FILE"])
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(names))
    partial.replace(target)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, report)
    sys.exit(main())
