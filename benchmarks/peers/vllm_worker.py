"""Serves a benchmark with vLLM's build for CPU: `LLM` with token ids, compiled as it does by default."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from protocol import Engine, Prompts, serve


def load(settings: dict[str, Any]) -> Engine:
    """Loads the checkpoint."""
    # By default vLLM leaves one core to its front, which has nothing to do here.
    cpus = sorted(os.sched_getaffinity(0))[: settings["num_threads"]]
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cpus))
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(-(-settings["kv_tokens"] * settings["kv_token_bytes"] // 2**30))
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - reads the environment

    llm = LLM(
        model=settings["model"],
        dtype="bfloat16",
        skip_tokenizer_init=True,
        enable_prefix_caching=settings["enable_prefix_caching"],
        max_model_len=settings["max_model_len"],
        max_num_seqs=settings["max_num_seqs"],
        max_logprobs=-1,
    )

    def generate(prompts: Prompts, output_len: int) -> list[list[int]]:
        params = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True, detokenize=False)
        outputs = llm.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def logits(prompt: Sequence[int]) -> Iterable[float]:
        params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, detokenize=False, logprobs=-1)
        (output,) = llm.generate([{"prompt_token_ids": list(prompt)}], params, use_tqdm=False)
        table = output.outputs[0].logprobs[0]
        return (table[token].logprob for token in range(len(table)))

    return Engine(generate, logits=logits)


if __name__ == "__main__":
    serve(load)
