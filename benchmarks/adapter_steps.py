"""Measures what adapters cost: decode steps and a prompt, by number of adapters and by rank, beside none.

    python benchmarks/adapter_steps.py
    python benchmarks/adapter_steps.py --shape tiny-28-layers      # next to no matrices: the Python part alone

Every case is measured in turn in each repeat, and told as a ratio to the same batch without adapters. The last line is
one JSON object.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from make_adapters import make_adapters
from make_checkpoint import DEFAULT_SHAPE, default_folder, make_checkpoint

from vllm_mxext import LLM, SamplingParams
from vllm_mxext.bench.metrics import summarize
from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.config.machine import usable_cores
from vllm_mxext.requests import LoRARequest

RANKS = (8, 16, 64)
ADAPTERS_PER_RANK = 8
WARM_UP_STEPS = 4
PROMPT_TOKENS = 512


@dataclass(frozen=True)
class Case:
    """A batch.

    Attributes:
        num_requests: requests.
        num_adapters: adapters that they use in turn; 0 = none.
        rank: of these.
    """

    num_requests: int
    num_adapters: int = 0
    rank: int = 0

    def __str__(self) -> str:
        if not self.num_adapters:
            return f"{self.num_requests} requests"
        return f"{self.num_requests} requests, {self.num_adapters} adapters of rank {self.rank}"


CASES = tuple(
    Case(num_requests, num_adapters, rank if num_adapters else 0)
    for num_requests in (1, 8, 32)
    for num_adapters in (0, 1, 8)
    if num_adapters <= num_requests
    for rank in (RANKS if num_adapters else (0,))
)


def requests_for(case: Case, adapters: dict[int, list[LoRARequest]]) -> list[LoRARequest | None]:
    """Returns the adapter of every request."""
    if not case.num_adapters:
        return [None] * case.num_requests
    return [adapters[case.rank][index % case.num_adapters] for index in range(case.num_requests)]


def decode_ms(llm: LLM, chosen: Sequence[LoRARequest | None], steps: int, name: str) -> float:
    """Returns milliseconds per decode step, the median."""
    engine, names = llm.engine, [f"{name}-{index}" for index in range(len(chosen))]
    params = SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True, detokenize=False)
    for index, (one, adapter) in enumerate(zip(names, chosen, strict=True)):
        engine.add_request(one, {"prompt_token_ids": [100 + index] * 16}, params, lora_request=adapter)
    milliseconds = []
    for step in range(-WARM_UP_STEPS, steps):
        start = time.perf_counter()
        engine.step()
        if step >= 0:
            milliseconds.append((time.perf_counter() - start) * 1e3)
    engine.abort_request(names)
    while engine.has_unfinished_requests():
        engine.step()
    return median(milliseconds)


def prompt_ms(llm: LLM, adapter: LoRARequest | None, seed: int) -> float:
    """Returns milliseconds for a prompt."""
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, detokenize=False)
    prompt = [1000 + (seed * 7919 + index * 31) % 100_000 for index in range(PROMPT_TOKENS)]
    start = time.perf_counter()
    llm.generate([prompt], params, use_tqdm=False, lora_request=adapter)
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    """Reads the arguments, measures and reports."""
    parser = argparse.ArgumentParser(description="What adapters cost.")
    parser.add_argument("--shape", default=DEFAULT_SHAPE)
    parser.add_argument("--quantization", choices=("none", "int8"), default="none")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-threads", type=int, default=usable_cores())
    arguments = parser.parse_args()
    model = default_folder(arguments.shape)
    make_checkpoint(model, shape=arguments.shape)
    folder = model.with_name(f"{model.name}-adapters")
    ranks = [rank for rank in RANKS for _ in range(ADAPTERS_PER_RANK)]
    adapters: dict[int, list[LoRARequest]] = {rank: [] for rank in RANKS}
    for index, (rank, path) in enumerate(zip(ranks, make_adapters(model, folder, ranks), strict=True)):
        adapters[rank].append(LoRARequest(path.name, index + 1, str(path)))
    llm = LLM(
        str(model), num_threads=arguments.num_threads, max_model_len=4096, kv_cache_memory_bytes="2GiB",
        quantization=None if arguments.quantization == "none" else arguments.quantization, max_num_seqs=32,
        enable_prefix_caching=False, enable_lora=True, max_loras=ADAPTERS_PER_RANK, max_lora_rank=max(RANKS),
        max_cpu_loras=len(ranks),
    )  # fmt: skip
    times: dict[str, list[float]] = {}
    for repeat in range(arguments.repeats + 1):
        for case in CASES:
            step_ms = decode_ms(llm, requests_for(case, adapters), arguments.steps, f"{case}-{repeat}")
            times.setdefault(str(case), []).append(step_ms)
        for rank in (0, *RANKS):
            name = f"prompt of {PROMPT_TOKENS}" + (f", rank {rank}" if rank else "")
            times.setdefault(name, []).append(prompt_ms(llm, adapters[rank][0] if rank else None, repeat))
    times = {name: taken[1:] for name, taken in times.items()}  # the first one warms up
    rows = []
    for name, taken in times.items():
        base = times[name.partition(",")[0]]
        rows.append((name, median(taken), median(one / other for one, other in zip(taken, base, strict=True))))
    print(format_table(("case", "ms", "ratio to none"), rows))
    config = {name: getattr(arguments, name) for name in ("shape", "quantization", "steps", "repeats", "num_threads")}
    print(json_line("adapter_steps", config, {name: summarize(taken).as_dict() for name, taken in times.items()}))


if __name__ == "__main__":
    main()
