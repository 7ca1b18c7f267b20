"""Where prompts come from: defaults, files, traces, and synthetic texts of an exact length with shared prefixes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_mxext.bench.serve.plan import Length, Plan
from vllm_mxext.bench.serve.tokens import TokenCounter
from vllm_mxext.errors import ConfigError

_FORMS = (
    "What is {}?",
    "Explain {} in simple words.",
    "What are the most important uses of {} today?",
    "Write a short story in which {} changes somebody's life.",
    "Compare the advantages and the risks of {}.",
)
_TOPICS = (
    "artificial intelligence",
    "machine learning",
    "the water cycle",
    "renewable energy",
    "a database index",
    "the Roman Empire",
    "photosynthesis",
    "public key cryptography",
    "the theory of relativity",
    "a balanced diet",
    "urban planning",
    "the printing press",
)
_WORDS = (  # noqa: SIM905 - a hundred quoted words are no better to read
    "time year people way day man thing woman life child world school state family student group country "
    "problem hand part place case week company system program question work government number night point "
    "home water room mother area money story fact month lot right study book eye job word business issue "
    "side kind head house service friend father power hour game line end member law car city community "
    "name president team minute idea body information back parent face level office door health person "
    "art war history party result change morning reason research girl guy moment air teacher force "
    "education a I we be of on at by it to"
).split()
_MAX_TRIES = 200
_MAX_TIMESTAMP = 1e15
"""Above the milliseconds of any date; comparing with it also refuses JSON's NaN."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one request asks.

    Attributes:
        text: of the user.
        max_tokens: of the answer.
        at_s: when it is due in a trace, in seconds since its first line; None without a trace.
    """

    text: str
    max_tokens: int
    at_s: float | None = None


def default_prompts(count: int) -> tuple[str, ...]:
    """Returns questions and tasks in plain English; after 60 different ones they repeat, with a number added."""
    texts = [form.format(topic) for form in _FORMS for topic in _TOPICS]
    # Shuffled by a fixed stride, so that the first few are of every kind.
    ordered = [texts[number * 13 % len(texts)] for number in range(len(texts))]
    rounds = ((ordered[number % len(ordered)], number // len(ordered)) for number in range(count))
    return tuple(f"{text} (Version {again + 1})" if again else text for text, again in rounds)


async def make_prompts(plan: Plan, count: int, counter: TokenCounter | None) -> tuple[Prompt, ...]:
    """Returns the prompts of a run: `count` synthetic ones, or all that the plan or its file lists.

    Args:
        plan: the plan.
        count: requests, warm-up and turns included.
        counter: counts tokens; needed for texts of an exact length.

    Raises:
        ConfigError: a file cannot be read, or tokens cannot be counted.
    """
    workload = plan.workload
    generator = random.Random(plan.test_params.seed)
    if workload.trace:
        return await _trace_prompts(plan, generator, counter)
    if workload.input_tokens is not None:
        return await _synthetic_prompts(plan, count, generator, counter)
    if workload.prompts_file:
        entries = tuple(_read_prompts(Path(workload.prompts_file)))
    else:
        entries = tuple((text, None) for text in plan.prompts or default_prompts(workload.num_prompts))
    return tuple(Prompt(text, given or _max_tokens(plan, generator)) for text, given in entries)


async def exact_text(num_tokens: int, generator: random.Random, counter: TokenCounter, prefix: str = "") -> str:
    """Returns `prefix` followed by random words, exactly `num_tokens` tokens in all.

    Raises:
        ConfigError: the server cannot count tokens, or no such text was found.
    """
    words: list[str] = []
    wanted = num_tokens
    own = num_tokens - ((await counter.count(prefix) or 0) if prefix else 0)
    for _ in range(_MAX_TRIES):
        words += generator.choices(_WORDS, k=max(wanted - len(words), 0))
        del words[wanted:]
        text = " ".join([*([prefix] if prefix else []), *words])
        count = await counter.count(text)
        if count is None:
            raise ConfigError(
                "Tokens cannot be counted, which --input-tokens and traces need: the server has no /tokenize; name the "
                "model's tokenizer.json with --tokenizer."
            )
        if count == num_tokens:
            return text
        missing = num_tokens - count
        per_word = max((own - missing) / len(words), 1.0) if words else 1.0
        if abs(missing) >= 2 * per_word:
            wanted = max(len(words) + int(missing / per_word), 1)
        else:
            # Close: replace the last words, with one more or one fewer, until the count fits.
            del words[-2:]
            wanted = max(len(words) + generator.choice((1, 2, 3)), 1)
    raise ConfigError(
        f"No text of exactly {num_tokens} tokens was found for this tokenizer; use another --input-tokens."
    )


async def _synthetic_prompts(
    plan: Plan, count: int, generator: random.Random, counter: TokenCounter | None
) -> tuple[Prompt, ...]:
    workload = plan.workload
    counter = _needed(counter)
    shared = workload.shared_prefix_tokens
    prefixes = [await exact_text(shared, generator, counter) for _ in range(workload.shared_prefixes if shared else 0)]
    prompts = []
    for number in range(count):
        length = _drawn(workload.input_tokens or Length(1, 1), generator)
        prefix = prefixes[number % len(prefixes)] if prefixes else ""
        text = await exact_text(length, generator, counter, prefix)
        prompts.append(Prompt(text, _max_tokens(plan, generator)))
    return tuple(prompts)


async def _trace_prompts(plan: Plan, generator: random.Random, counter: TokenCounter | None) -> tuple[Prompt, ...]:
    path = Path(plan.workload.trace)
    rows = []
    for place, row in _json_lines(path):
        at: Any = row.get("timestamp", row.get("timestamp_ms"))
        length = row.get("input_length", row.get("input_tokens"))
        if not _is_number(at) or not (isinstance(row.get("prompt"), str) or _is_count(length)):
            raise ConfigError(
                f"{place} needs 'timestamp' (seconds) or 'timestamp_ms', and 'prompt' or 'input_length' (tokens)."
            )
        output = row.get("output_length", row.get("output_tokens"))
        if output is not None and not _is_count(output):
            raise ConfigError(f"{place}: 'output_length' must be a whole number of tokens above 0.")
        is_in_ms = "timestamp" not in row or "hash_ids" in row  # Mooncake's traces, which have these, count so
        rows.append((at / 1000 if is_in_ms else at, row.get("prompt"), length, output))
    rows.sort(key=lambda row: row[0])
    prompts = []
    for at, text, length, output in rows:
        content = text if isinstance(text, str) else await exact_text(int(length or 0), generator, _needed(counter))
        since = (at - rows[0][0]) / plan.workload.trace_speed
        prompts.append(Prompt(content, output or _max_tokens(plan, generator), since))
    return tuple(prompts)


def _read_prompts(path: Path) -> Iterator[tuple[str, int | None]]:
    if path.suffix == ".jsonl":
        for place, row in _json_lines(path):
            text, tokens = row.get("prompt"), row.get("max_tokens")
            if not isinstance(text, str) or not text or not (tokens is None or _is_count(tokens)):
                raise ConfigError(f"{place} needs 'prompt', a text, and may have 'max_tokens', a number above 0.")
            yield text, tokens
        return
    lines = [line.strip() for line in _lines(path)]
    if not any(lines):
        raise ConfigError(f"'{path}' has no prompts; write one per line.")
    yield from ((line, None) for line in lines if line)


def _json_lines(path: Path) -> Sequence[tuple[str, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ConfigError(f"{path}:{number} must be one JSON object.")
        rows.append((f"{path}:{number}", row))
    if not rows:
        raise ConfigError(f"'{path}' is empty; write one JSON object per line.")
    return rows


def _lines(path: Path) -> Sequence[str]:
    """Splits at newlines only: `str.splitlines` also splits at characters that JSON may hold, such as U+2028."""
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"'{path}' is not UTF-8 text; save it as UTF-8.") from None


def _needed(counter: TokenCounter | None) -> TokenCounter:
    assert counter is not None, "a plan that gives lengths is never read without a counter"
    return counter


def _max_tokens(plan: Plan, generator: random.Random) -> int:
    length = plan.workload.output_tokens
    return plan.test_params.max_tokens if length is None else _drawn(length, generator)


def _drawn(length: Length, generator: random.Random) -> int:
    return generator.randint(length.low, length.high)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _MAX_TIMESTAMP


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
