"""How a benchmark talks to a peer: one JSON object per line on standard input and output.

The peer first writes `{"ready": true}`. Then it reads `{"prompts": [[token, ...], ...], "output_len": N}`,
generates greedily without stopping early, and answers `{"seconds": S, "num_tokens": [per prompt]}`; and so on until its
input ends.

This file is imported by workers that run in the environments of the peers: it needs the standard library only.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence

Generate = Callable[[Sequence[Sequence[int]], int], list[int]]
"""Prompts and output length -> number of tokens generated per prompt."""


def serve(load: Callable[[], Generate]) -> None:
    """Runs one peer until its input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not end up between the answers
    generate = load()
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        task = json.loads(line)
        start = time.perf_counter()
        num_tokens = generate(task["prompts"], task["output_len"])
        print(json.dumps({"seconds": time.perf_counter() - start, "num_tokens": num_tokens}), file=answers)
