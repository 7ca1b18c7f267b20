"""Measures speculation against the same engine without: speed-up where text repeats, cost where it does not.

    python benchmarks/speculation.py --model FOLDER
    python benchmarks/speculation.py --model FOLDER --draft-model OTHER

What repeats is honest but made. Greedy text of a model with random weights falls into loops if tokens that have come up
are favoured (`repetition_penalty` below 1): the task `favoured`. `loops` is greedy text as it comes. `fresh` draws at
temperature 1, which a model with random weights never repeats. `misleading` draws from ten tokens only: whatever comes
up has come up before, and what followed it says nothing. Every answer is compared with the one without speculation.
make_checkpoint.py makes a pair of models for `--draft-model`.

Tokens per second are counted until the first request ends. With speculation the others go on for a while in smaller
batches, which would not happen in a server whose batch is filled up again. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_mxext import LLMEngine
from vllm_mxext.bench.metrics import summarize
from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.config.machine import usable_cores
from vllm_mxext.engine.engine_args import EngineArgs
from vllm_mxext.native.core.drafting import Drafting
from vllm_mxext.native.core.request import Request
from vllm_mxext.native.protocol import EngineCoreOutput, ModelRunnerOutput
from vllm_mxext.requests import TokensPrompt
from vllm_mxext.sampling_params import OutputKind, SamplingParams

TASKS: dict[str, dict[str, Any]] = {
    "favoured": {"temperature": 0.0, "repetition_penalty": 0.5},
    "loops": {"temperature": 0.0},
    "fresh": {"temperature": 1.0},
    "misleading": {"temperature": 1.0, "allowed_token_ids": tuple(range(10, 20))},
}
"""Task -> sampling parameters."""


@dataclass
class Counts:
    """Draft tokens of a run.

    Attributes:
        drafted: all of them.
        accepted: those that were right.
    """

    drafted: int = 0
    accepted: int = 0


@dataclass
class Measured:
    """One task at one batch size.

    Attributes:
        ratios: tokens per second with speculation over those without, of runs that followed each other.
        counts: draft tokens of all runs.
    """

    ratios: list[float] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)


def count_drafts(counts: Counts) -> None:
    """Adds every request's drafts to `counts` from now on."""
    record = Drafting.record

    def counting(self: Drafting, request: Request, result: ModelRunnerOutput, output: EngineCoreOutput) -> None:
        counts.drafted += result.num_draft_tokens.get(request.request_id, 0)
        counts.accepted += result.num_accepted_tokens.get(request.request_id, 0)
        record(self, request, result, output)

    Drafting.record = counting  # type: ignore[method-assign]


def generate(
    engine: LLMEngine,
    prompts: Sequence[Sequence[int]],
    output_len: int,
    controls: dict[str, Any],
    clock: Callable[[], float],
) -> tuple[float, list[list[int]]]:
    """Generates once; returns tokens per second while everybody runs, and the tokens."""
    start = clock()
    for index, prompt in enumerate(prompts):
        params = SamplingParams(
            max_tokens=output_len,
            ignore_eos=True,
            detokenize=False,
            seed=index,
            output_kind=OutputKind.DELTA,
            **controls,
        )
        engine.add_request(str(index), TokensPrompt(tuple(prompt)), params)
    tokens: list[list[int]] = [[] for _ in prompts]
    rate = 0.0
    while engine.has_unfinished_requests():
        outputs = engine.step()
        for output in outputs:
            tokens[int(output.request_id)] += output.outputs[0].token_ids
        if not rate and any(output.finished for output in outputs):
            rate = sum(map(len, tokens)) / (clock() - start)
    return rate, tokens


def main() -> None:
    """Reads the arguments, measures and reports."""
    parser = argparse.ArgumentParser(description="Tokens per second with speculation over those without.")
    parser.add_argument("--model", help="default: the built-in model")
    parser.add_argument("--draft-model", help="draft with this model instead of prompt lookup")
    parser.add_argument("--quantization", choices=["none", "int8"], help="of the model and of the draft model")
    parser.add_argument("--num-drafts", type=int, default=4)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--num-threads", type=int, default=usable_cores())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time of the process")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    weights = {"quantization": arguments.quantization} if arguments.quantization else {}
    speculation: dict[str, Any] = {"method": "ngram", "prompt_lookup_min": 2, "prompt_lookup_max": 4}
    if arguments.draft_model:
        speculation = {"method": "draft_model", "model": arguments.draft_model, **weights}
    options: dict[str, Any] = {
        **weights,
        "num_threads": arguments.num_threads,
        "max_model_len": arguments.input_len + arguments.output_len,
        "max_num_seqs": max(arguments.batches),
        "kv_cache_memory_bytes": "1GiB",
        "enable_prefix_caching": False,
    }
    counts = Counts()
    count_drafts(counts)
    plain = LLMEngine.from_engine_args(model=arguments.model, **options)
    drafting = LLMEngine.from_engine_args(
        model=arguments.model,
        speculative_config={**speculation, "num_speculative_tokens": arguments.num_drafts},
        **options,
    )
    vocab_size = EngineArgs(model=arguments.model).resolve().engine.model.spec.vocab_size
    measured: dict[str, Measured] = {}
    for task in arguments.tasks:
        for batch in arguments.batches:
            figures = measured[f"{task}, {batch}"] = Measured()
            for repeat in range(arguments.repeats + 1):
                numbers = random.Random(repeat)
                prompts = [[numbers.randrange(vocab_size) for _ in range(arguments.input_len)] for _ in range(batch)]
                before = Counts(counts.drafted, counts.accepted)
                runs = {}
                for engine in (plain, drafting) if repeat % 2 else (drafting, plain):
                    runs[engine] = generate(engine, prompts, arguments.output_len, TASKS[task], clock)
                (plain_rate, expected), (drafted_rate, tokens) = runs[plain], runs[drafting]
                if tokens != expected:
                    raise SystemExit(f"Speculation changed the tokens of {task} with {batch} requests.")
                if repeat > 0:  # the first one warms up
                    figures.ratios.append(drafted_rate / plain_rate)
                    figures.counts.drafted += counts.drafted - before.drafted
                    figures.counts.accepted += counts.accepted - before.accepted
    config = {name: value for name, value in vars(arguments).items() if name not in ("model", "draft_model")}
    config["model"] = Path(arguments.model).name if arguments.model else "mx-tiny"
    config["draft_model"] = Path(arguments.draft_model).name if arguments.draft_model else None
    report(measured, config)


def report(measured: dict[str, Measured], config: dict[str, Any]) -> None:
    """Prints the table and the line of JSON."""
    rows = []
    for name, figures in measured.items():
        ratio, drafted = summarize(figures.ratios), figures.counts.drafted
        share = figures.counts.accepted / drafted if drafted else 0.0
        rows.append((name, ratio.median, ratio.minimum, ratio.maximum, drafted, share))
    print(format_table(("task, requests", "speed-up", "min", "max", "drafted", "accepted"), rows))
    results = {
        name: {
            "speed_up": summarize(figures.ratios).median,
            "drafted": figures.counts.drafted,
            "accepted": figures.counts.accepted,
        }
        for name, figures in measured.items()
    }
    print(json_line("speculation", config, results))


if __name__ == "__main__":
    main()
