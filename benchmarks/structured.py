"""Measures what structured output costs: the time of decode steps of 32 requests, of which 0, 1, 8 or 32 write JSON.

    python benchmarks/structured.py
    python benchmarks/structured.py --shape tiny-28-layers      # next to no matrices: the cost itself

The model is the random one of the other benchmarks; its tokenizer is replaced by a made-up vocabulary of the same size
in which tokens are bytes, words and runs of punctuation, as JSON needs. Arrays are asked for that never end. Steps in
which forced tokens are computed are longer and bring more tokens, so both figures are told. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from statistics import median
from typing import Any

from make_checkpoint import DEFAULT_SHAPE, VOCAB_SIZE, default_folder, make_checkpoint

from vllm_mxext import LLM, SamplingParams, StructuredOutputsParams
from vllm_mxext.bench.metrics import summarize
from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.config.machine import usable_cores

BATCH = 32
CONSTRAINED = (0, 1, 8, 32)
WARM_UP_STEPS = 8
END = "<|end|>"
SCHEMA = {
    "type": "array",
    "minItems": 10_000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "kind": {"enum": ["small", "large"]},
            "sizes": {"type": "array", "items": {"type": "number"}},
        },
        "required": ["name", "kind", "sizes"],
        "additionalProperties": False,
    },
}


def write_tokenizer(folder: Path) -> None:
    """Writes a byte-level vocabulary of seeded words; a folder that has one is left as it is."""
    if (folder / "tokenizer.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    printable = [chr(byte) for byte in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))]
    texts = dict.fromkeys([*printable, *(chr(256 + i) for i in range(256 - len(printable)))])
    draw = random.Random(0)
    while len(texts) < VOCAB_SIZE - 1:
        size = draw.randint(2, 9)
        letters = "".join(draw.choices("etaoinshrdlucmfwypvbgkqjxz", weights=range(26, 0, -1), k=size))
        marks = "".join(draw.choices('{}[]":,.-\u0120\u010a', k=draw.randint(2, 4)))
        texts[draw.choices((letters, "\u0120" + letters, letters.capitalize(), marks), weights=(3, 5, 1, 1))[0]] = None
    end = {"id": VOCAB_SIZE - 1, "content": END, "special": True}
    rest = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [{**end, **rest}],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {text: i for i, text in enumerate(texts)}, "merges": []},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def measure(llm: LLM, num_constrained: int, steps: int, seed: int) -> tuple[float, float]:
    """Returns milliseconds per decode step, the median, and tokens per step and constrained request."""
    engine = llm.engine
    names = [f"{num_constrained}-{seed}-{index}" for index in range(BATCH)]
    for index, name in enumerate(names):
        constraint = StructuredOutputsParams(json=SCHEMA) if index < num_constrained else None
        params = SamplingParams(
            temperature=1.0, max_tokens=None, ignore_eos=True, seed=seed * BATCH + index, structured_outputs=constraint
        )
        engine.add_request(name, {"prompt_token_ids": [100 + index] * 16}, params)
    lengths: dict[str, int] = {}
    milliseconds: list[float] = []
    before = 0
    for step in range(-WARM_UP_STEPS, steps):
        if step == 0:
            before = sum(lengths.get(name, 0) for name in names[:num_constrained])
        start = time.perf_counter()
        outputs = engine.step()
        if step >= 0:
            milliseconds.append((time.perf_counter() - start) * 1e3)
        lengths.update((output.request_id, len(output.outputs[0].token_ids)) for output in outputs)
    written = sum(lengths[name] for name in names[:num_constrained]) - before
    engine.abort_request(names)
    while engine.has_unfinished_requests():
        engine.step()
    return median(milliseconds), written / steps / num_constrained if num_constrained else 1.0


def main() -> None:
    """Reads the arguments, measures and reports."""
    parser = argparse.ArgumentParser(description="Decode step time with and without structured output.")
    parser.add_argument("--shape", default=DEFAULT_SHAPE)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--num-threads", type=int, default=usable_cores())
    arguments = parser.parse_args()
    model = default_folder(arguments.shape)
    make_checkpoint(model, shape=arguments.shape)
    tokenizer = model.with_name("byte-level-vocabulary")
    write_tokenizer(tokenizer)
    llm = LLM(
        str(model), tokenizer=str(tokenizer), num_threads=arguments.num_threads, max_model_len=4096,
        kv_cache_memory_bytes="2GiB", max_num_seqs=BATCH,
    )  # fmt: skip
    times: dict[int, list[float]] = {count: [] for count in CONSTRAINED}
    lengths: dict[int, list[float]] = {count: [] for count in CONSTRAINED}
    for repeat in range(arguments.repeats + 1):
        for count in CONSTRAINED:
            step_ms, num_tokens = measure(llm, count, arguments.steps, repeat)
            if repeat > 0:  # the first one warms up
                times[count].append(step_ms)
                lengths[count].append(num_tokens)
    free = median(times[0])
    rows = [
        (f"{count} of {BATCH} constrained", median(times[count]), median(times[count]) / free, median(lengths[count]))
        for count in CONSTRAINED
    ]
    print(format_table(("decode steps", "ms", "ratio", "tokens per step and constrained request"), rows))
    config = {name: getattr(arguments, name) for name in ("shape", "steps", "repeats", "num_threads")}
    results = {f"{count} constrained": summarize(times[count]).as_dict() for count in CONSTRAINED}
    print(json_line("structured", config, results))


if __name__ == "__main__":
    main()
