"""Prompts: files, exact lengths with any tokenizer, common beginnings, traces."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_mxext.bench.serve.plan import Plan
from vllm_mxext.bench.serve.plan_reading import plan_from_mapping
from vllm_mxext.bench.serve.prompts import Prompt, default_prompts, exact_text, make_prompts
from vllm_mxext.bench.serve.result import TokenSource
from vllm_mxext.errors import ConfigError


class Counter:
    """Counts with a function."""

    source: TokenSource = "tokenizer"

    def __init__(self, function: Callable[[str], int | None]) -> None:
        self.function = function

    async def count(self, text: str) -> int | None:
        return self.function(text)


WORDS = Counter(lambda text: len(text.split()))
TOKENIZERS = {
    "words": WORDS,
    "characters": Counter(len),
    "pieces of at most 3 letters": Counter(lambda text: sum(-(-len(word) // 3) for word in text.split())),
    "two for words longer than two letters": Counter(lambda text: sum(1 + (len(word) > 2) for word in text.split())),
}


def plan(**workload: object) -> Plan:
    return plan_from_mapping({"server": {"model": "m"}, "workload": workload})


def made(given: Plan, count: int = 0, counter: Counter = WORDS) -> tuple[Prompt, ...]:
    return asyncio.run(make_prompts(given, count, counter))


def test_default_prompts_are_all_different_as_long_as_they_can_be() -> None:
    assert len(set(default_prompts(200))) == 200
    assert default_prompts(10) == default_prompts(50)[:10]


@pytest.mark.promise("PERF-11")
@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("num_tokens", [5, 37, 501])
def test_texts_have_exactly_the_tokens_asked_for_whatever_the_tokenizer(name: str, num_tokens: int) -> None:
    text = asyncio.run(exact_text(num_tokens, random.Random(1), TOKENIZERS[name]))
    assert TOKENIZERS[name].function(text) == num_tokens


@pytest.mark.promise("PERF-11")
@pytest.mark.parametrize("name", TOKENIZERS)
def test_common_beginnings_are_common_and_the_rest_is_not(name: str) -> None:
    counter = TOKENIZERS[name]
    prompts = made(plan(input_tokens="81:121", shared_prefix_tokens=61, shared_prefixes=2), 6, counter)
    beginnings = {text[:30] for text in (prompt.text for prompt in prompts)}
    assert len(beginnings) == 2
    assert len({prompt.text for prompt in prompts}) == 6
    assert all(81 <= (counter.function(prompt.text) or 0) <= 121 for prompt in prompts)


def test_equal_seeds_make_equal_prompts() -> None:
    wanted = plan(input_tokens="5:20", output_tokens="3:9")
    assert made(wanted, 8) == made(wanted, 8)
    assert len({prompt.max_tokens for prompt in made(wanted, 30)}) > 3


def test_a_server_that_cannot_count_is_named() -> None:
    with pytest.raises(ConfigError, match="--tokenizer"):
        made(plan(input_tokens=5), 1, Counter(lambda _: None))


def test_a_tokenizer_without_such_a_text_ends_the_search() -> None:
    with pytest.raises(ConfigError, match="exactly 5 tokens"):
        made(plan(input_tokens=5), 1, Counter(lambda text: 2 * len(text.split())))


def test_a_file_has_one_prompt_per_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("Explain quantum computing\n\n  什么是人工智能？ \n", encoding="utf-8")
    assert [prompt.text for prompt in made(plan(prompts_file=str(path)))] == [
        "Explain quantum computing",
        "什么是人工智能？",
    ]


def test_jsonl_may_say_the_length_of_each_answer(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a", "max_tokens": 7}\n{"prompt": "b"}\n')
    assert [(prompt.text, prompt.max_tokens) for prompt in made(plan(prompts_file=str(path)))] == [("a", 7), ("b", 100)]


def test_a_trace_keeps_its_times_and_lengths(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"timestamp": 12.0, "input_length": 9, "output_length": 4}\n{"timestamp_ms": 10000, "prompt": "x y"}\n'
    )
    first, second = made(plan(trace=str(path), trace_speed=2))
    assert first == Prompt("x y", 100, 0.0)
    assert (len(second.text.split()), second.max_tokens, second.at_s) == (9, 4, 1.0)


def test_a_trace_of_mooncake_counts_milliseconds(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    rows = (f'{{"timestamp": {at}, "input_length": 3, "output_length": 4, "hash_ids": [0]}}\n' for at in (0, 3052))
    path.write_text("".join(rows))
    assert [prompt.at_s for prompt in made(plan(trace=str(path)))] == [0.0, 3.052]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", "\n \n", "has no prompts"),
        ("p.jsonl", '{"text": "a"}', "p.jsonl:1 needs 'prompt'"),
        ("p.jsonl", '{"prompt": "a"}\nb', "p.jsonl:2 must be one JSON object"),
        ("p.jsonl", "", "is empty"),
    ],
)
def test_wrong_files_are_refused_with_their_line(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=words):
        made(plan(prompts_file=str(tmp_path / name)))


@pytest.mark.parametrize("row", ['{"input_length": 5}', '{"timestamp": 1}', '{"timestamp": 1, "input_length": 0}'])
def test_traces_without_times_or_lengths_are_refused(tmp_path: Path, row: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(row)
    with pytest.raises(ConfigError, match=r"trace\.jsonl:1 needs"):
        made(plan(trace=str(path)))


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        made(plan(prompts_file="/none/such"))


@pytest.mark.parametrize(
    "row", ['{"timestamp_ms": "12", "prompt": "x"}', '{"timestamp": NaN, "prompt": "x"}', '{"a": ' * 9999]
)
def test_a_time_that_is_none_is_refused(tmp_path: Path, row: str) -> None:
    (tmp_path / "trace.jsonl").write_text(row)
    with pytest.raises(ConfigError, match=r"trace\.jsonl:1 "):
        made(plan(trace=str(tmp_path / "trace.jsonl")))


def test_a_prompt_may_hold_signs_that_end_lines_elsewhere(tmp_path: Path) -> None:
    text = "one\u2028two\x0bthree\x85four"
    (tmp_path / "prompts.jsonl").write_text(f'{{"prompt": "{text.replace(chr(11), " ")}"}}\r\n', encoding="utf-8")
    (tmp_path / "prompts.txt").write_text(f"\ufeff{text}\r\nfive\r\n", encoding="utf-8", newline="")
    (one,) = made(plan(prompts_file=str(tmp_path / "prompts.jsonl")))
    assert one.text == text.replace("\x0b", " ")
    assert [prompt.text for prompt in made(plan(prompts_file=str(tmp_path / "prompts.txt")))] == [text, "five"]
