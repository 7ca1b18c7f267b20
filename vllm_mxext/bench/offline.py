"""Measures the engine in this process through `LLM`, without server and HTTP."""

from __future__ import annotations

import time
from typing import Protocol

from vllm_mxext.bench.workload import Workload
from vllm_mxext.errors import GenerationError
from vllm_mxext.outputs import RequestOutput
from vllm_mxext.requests import TokensPrompt
from vllm_mxext.sampling_params import SamplingParams


class Generator(Protocol):
    """The part of `LLM` that is measured."""

    def generate(
        self, prompts: list[TokensPrompt], sampling_params: SamplingParams, *, use_tqdm: bool
    ) -> list[RequestOutput]:
        """Generates one output per prompt."""
        ...


def measure_offline(llm: Generator, workload: Workload, vocab_size: int, seed: int) -> float:
    """Generates the workload once, greedily, and returns the seconds it took.

    Args:
        llm: the engine, with prefix caching off or a new seed per call, so that no call finds the last one's blocks.
        workload: what to generate.
        vocab_size: prompts are random ids below it.
        seed: seed of the prompts.

    Raises:
        GenerationError: an output is shorter than asked for.
    """
    prompts = [TokensPrompt(tuple(ids)) for ids in workload.prompts(range(vocab_size), seed)]
    params = SamplingParams(temperature=0.0, max_tokens=workload.output_len, ignore_eos=True, detokenize=False)
    start = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    elapsed_s = time.perf_counter() - start
    lengths = {len(output.outputs[0].token_ids) for output in outputs}
    if lengths != {workload.output_len}:
        raise GenerationError(f"Outputs of {workload.output_len} tokens were asked for, lengths {lengths} came.")
    return elapsed_s
