"""The child of `GrammarChecker`: `python -m ... TOKENIZER VOCAB_SIZE END_IDS`, grammars in, reasons out."""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from pathlib import Path
from typing import BinaryIO

from vllm_mxext.native.structured.checker import LENGTH
from vllm_mxext.native.structured.compilation import trial_error
from vllm_mxext.native.structured.vocabulary import Vocabulary, make_vocabulary
from vllm_mxext.tokenizer.loading import load_tokenizer

CPU_SECONDS = 3
"""Processor time of one grammar, rounded up to whole seconds of the process."""

_MEMORY_BYTES = 2 * 2**30
_NICENESS = 10


def main() -> None:
    """Answers every message with the reason against its grammar, or with nothing; ends with its standard input."""
    path, size, ends = sys.argv[1:4]
    os.nice(_NICENESS)
    vocabulary = make_vocabulary(load_tokenizer(Path(path)), int(size), [int(end) for end in ends.split(",") if end])
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _serve(sys.stdin.buffer, sys.stdout.buffer, vocabulary)


def _serve(requests: BinaryIO, answers: BinaryIO, vocabulary: Vocabulary) -> None:
    answers.write(LENGTH.pack(0))
    answers.flush()
    while header := requests.read(LENGTH.size):
        grammar = requests.read(LENGTH.unpack(header)[0]).decode()
        limit = math.ceil(time.process_time()) + CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        reason = trial_error(grammar, vocabulary).encode()
        answers.write(LENGTH.pack(len(reason)) + reason)
        answers.flush()


if __name__ == "__main__":
    main()
