"""A tiny model with random weights for offline generation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine_fakes import write_tiny_checkpoint
from vllm_mxext.entrypoints.llm import LLM
from vllm_mxext.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model"))


def load(checkpoint: Path, **engine_args: Any) -> LLM:
    return LLM(checkpoint, load_format="dummy", max_num_seqs=4, num_threads=1, dtype="float32", **engine_args)


@pytest.fixture(scope="module")
def llm(checkpoint: Path) -> Iterator[LLM]:
    with load(checkpoint) as llm:
        yield llm
