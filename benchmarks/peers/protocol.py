"""How a benchmark talks to an engine: one JSON object per line on standard input and output.

A worker is started with its settings as one JSON object on the command line. It first writes `{"ready": true}`. Then it
reads tasks and answers each, until its input ends:

    {"prompts": [[token, ...], ...], "output_len": N}  ->  {"seconds": S, "tokens": [[token, ...] per prompt]}
    {"logits_after": [token, ...]}                     ->  {"logits": float32 numbers in base64}

Generation is greedy and does not stop early.

This file is imported by workers that run in the environments of the peers: it needs the standard library only.
"""

from __future__ import annotations

import array
import base64
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Engine:
    """What a worker has loaded.

    Attributes:
        generate: prompts and output length -> the tokens generated for each prompt.
        prepare: the same arguments; makes room for a task before its time starts. None if nothing is to be done.
        logits: prompt -> logits of the token after it, each up to one constant (so log probabilities will do); None if
            the engine does not show them.
    """

    generate: Callable[[Prompts, int], list[list[int]]]
    prepare: Callable[[Prompts, int], None] | None = None
    logits: Callable[[Sequence[int]], Iterable[float]] | None = None


def serve(load: Callable[[dict[str, Any]], Engine]) -> None:
    """Runs one worker until its input ends.

    Args:
        load: makes the engine from the settings: `model` (a path), `num_threads`, `kv_tokens` and `kv_token_bytes` (the
            room for keys and values), `max_model_len`, `max_num_seqs`, `enable_prefix_caching`, and options of its own.
    """
    _end_with_parent()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not end up between the answers
    engine = load(json.loads(sys.argv[1]))
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        print(json.dumps(_answer(engine, json.loads(line))), file=answers)


def _end_with_parent() -> None:
    """Lets the system kill this process when its parent ends: a stopped one would not notice that its input ends."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _answer(engine: Engine, task: dict[str, Any]) -> dict[str, Any]:
    if "logits_after" in task:
        if engine.logits is None:
            return {"logits": None}
        return {"logits": base64.b64encode(array.array("f", engine.logits(task["logits_after"]))).decode()}
    arguments = (task["prompts"], task["output_len"])
    if engine.prepare is not None:
        engine.prepare(*arguments)
    start = time.perf_counter()
    tokens = engine.generate(*arguments)
    return {"seconds": time.perf_counter() - start, "tokens": tokens}
