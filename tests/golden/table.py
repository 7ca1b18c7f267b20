"""Prints the golden comparison as a markdown table: `python -m tests.golden.table`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import torch
import transformers

from tests.golden.comparison import DTYPES, Comparison, compare, make_prompts
from tests.golden.engine import kernel_sets
from tests.golden.models import MODELS, TinyModel
from vllm_mxext.config.engine import DType

PROMPT_LENGTHS = (1, 5, 17, 40, 64, 90)
NUM_TOKENS = 24

_HEADER = (
    "| family | models | kernels | dtype | greedy agreement | transformers' own | largest logit error | "
    "transformers' own | largest logit |"
)


def main() -> None:
    """Compares every model, dtype and kernel set; families with several models get their worst figures."""
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    _write(_HEADER)
    _write("|" + "---|" * (_HEADER.count("|") - 1))
    families = dict.fromkeys(model.family for model in MODELS)
    with tempfile.TemporaryDirectory() as folder:
        for family in families:
            models = [model for model in MODELS if model.family == family]
            for kernels in kernel_sets():
                for dtype in DTYPES:
                    results = list(_compare_all(Path(folder), models, dtype, kernels))
                    _write(_row(family, kernels, dtype, results))


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _compare_all(base: Path, models: Iterable[TinyModel], dtype: str, kernels: str) -> Iterable[Comparison]:
    for model in models:
        folder = base / f"{model.name}-{dtype}"
        if not folder.exists():
            model.save(folder, DTYPES[dtype])
        yield compare(folder, cast(DType, dtype), make_prompts(PROMPT_LENGTHS, num_tokens=NUM_TOKENS), kernels=kernels)


def _row(family: str, kernels: str, dtype: str, results: Sequence[Comparison]) -> str:
    total = sum(result.num_tokens for result in results)
    agreeing = sum(result.num_agreeing for result in results)
    theirs = sum(result.reference_agreeing for result in results)
    worst = max(results, key=lambda result: result.max_error)
    cells = (
        family,
        str(len(results)),
        kernels,
        dtype,
        f"{agreeing} of {total} ({agreeing / total:.1%})",
        f"{theirs / total:.1%}",
        f"{worst.max_error:.1e}",
        f"{worst.reference_max_error:.1e}" if worst.reference_max_error else "0 (reference)",
        f"{worst.max_logit:.1f}",
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
