"""Serves a benchmark with our engine, in a process of its own like the peers'."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from protocol import Engine, Prompts, serve

from vllm_mxext import LLM, SamplingParams
from vllm_mxext.requests import TokensPrompt


def load(settings: dict[str, Any]) -> Engine:
    """Loads the checkpoint; settings that the protocol does not know are arguments of `LLM`."""
    arguments = dict(settings)
    kv_bytes = arguments.pop("kv_tokens") * arguments.pop("kv_token_bytes")
    llm = LLM(kv_cache_memory_bytes=kv_bytes, max_logprobs=-1, **arguments)

    def generate(prompts: Prompts, output_len: int) -> list[list[int]]:
        params = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True, detokenize=False)
        outputs = llm.generate([TokensPrompt(tuple(prompt)) for prompt in prompts], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def logits(prompt: Sequence[int]) -> Iterable[float]:
        params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, detokenize=False, logprobs=-1)
        (output,) = llm.generate(TokensPrompt(tuple(prompt)), params, use_tqdm=False)
        table = output.outputs[0].logprobs[0]
        return (table[token].logprob for token in range(llm.model.vocab_size))

    return Engine(generate, logits=logits)


if __name__ == "__main__":
    serve(load)
