"""Measures what one long prompt does to the streams beside it, for several token budgets per step.

    python benchmarks/long_prompt.py --budgets 256 512 1024 2048

Streams decode steadily; then a prompt of 8,000 tokens comes. Reported are the streams' time per token before it, their
median and longest wait for a token until its first one, and its time to the first token. The last line is JSON.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

from make_checkpoint import DEFAULT_FOLDER, VOCAB_SIZE, make_checkpoint

from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.bench.workload import Workload
from vllm_mxext.config.machine import usable_cores
from vllm_mxext.engine.llm_engine import LLMEngine
from vllm_mxext.requests import GenerateRequest, TokensPrompt
from vllm_mxext.sampling_params import OutputKind, SamplingParams

NUM_STEADY_STEPS = 20
STREAM_PROMPT_LEN = 32


def add(engine: LLMEngine, name: str, prompt: list[int], max_tokens: int) -> None:
    """Adds a greedy request that reports every token."""
    params = SamplingParams(
        temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False, output_kind=OutputKind.DELTA
    )
    engine.add_requests([GenerateRequest(name, TokensPrompt(tuple(prompt)), params)])


def measure(engine: LLMEngine, num_streams: int, prompt_len: int, seed: int) -> dict[str, float]:
    """Runs the streams and the long prompt once; seconds."""
    alphabet = range(VOCAB_SIZE)
    for i, prompt in enumerate(Workload(num_streams, STREAM_PROMPT_LEN, 1).prompts(alphabet, seed)):
        add(engine, f"stream {i}", prompt, 2_000)
    engine.step()
    steady_s = [_step_s(engine)[0] for _ in range(NUM_STEADY_STEPS)]
    (long_prompt,) = Workload(1, prompt_len, 1).prompts(alphabet, seed)
    add(engine, "long", long_prompt, 1)
    waits_s = []
    names: set[str] = set()
    while "long" not in names:
        step_s, names = _step_s(engine)
        waits_s.append(step_s)
        if len(names - {"long"}) != num_streams:
            raise RuntimeError(f"Only {sorted(names)} got a token in a step.")
    engine.abort_request(f"stream {i}" for i in range(num_streams))
    while engine.has_unfinished_requests():
        engine.step()
    engine.reset_prefix_cache()
    return {
        "token before": median(steady_s),
        "token beside": median(waits_s),
        "longest wait": max(waits_s),
        "first token": sum(waits_s),
    }


def _step_s(engine: LLMEngine) -> tuple[float, set[str]]:
    start = time.perf_counter()
    outputs = engine.step()
    return time.perf_counter() - start, {output.request_id for output in outputs}


def main() -> None:
    """Reads the arguments, measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_FOLDER, help="made if it is the default")
    parser.add_argument("--budgets", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prompt-len", type=int, default=8_000)
    parser.add_argument("--quantization", default="auto")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--num-threads", type=int, default=usable_cores())
    arguments = parser.parse_args()
    if arguments.model == DEFAULT_FOLDER:
        make_checkpoint(arguments.model)
    results: dict[str, dict[str, float]] = {}
    for budget in arguments.budgets:
        engine = LLMEngine.from_engine_args(
            model=str(arguments.model),
            quantization=arguments.quantization,
            max_num_batched_tokens=budget,
            num_threads=arguments.num_threads,
            max_model_len=arguments.prompt_len + 2_100,
            max_num_seqs=arguments.streams + 1,
        )
        measure(engine, arguments.streams, min(arguments.prompt_len, 2 * budget), seed=0)  # touches all memory first
        runs = [measure(engine, arguments.streams, arguments.prompt_len, seed + 1) for seed in range(arguments.repeats)]
        results[str(budget)] = {name: median(run[name] for run in runs) for name in runs[0]}
        engine.close()
    names = list(next(iter(results.values())))
    rows: list[tuple[Any, ...]] = [(budget, *figures.values()) for budget, figures in results.items()]
    print(format_table(("token budget, seconds", *names), rows))
    config = {"streams": arguments.streams, "prompt_len": arguments.prompt_len, "quantization": arguments.quantization}
    print(json_line("long_prompt", {**config, "num_threads": arguments.num_threads}, results))


if __name__ == "__main__":
    main()
