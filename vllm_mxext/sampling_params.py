"""`SamplingParams`: how the tokens of one request are chosen and when it stops."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from vllm_mxext.errors import InvalidRequestError

GREEDY_TEMPERATURE = 1e-5
"""Temperatures below this mean greedy decoding."""

MIN_TEMPERATURE = 1e-2
"""Positive temperatures are raised to this, below which float32 probabilities overflow."""

MAX_NUM_SAMPLES = 16_384

_OPTIONAL_FIELDS = frozenset({"seed", "max_tokens", "logprobs"})
"""Fields in which None has a meaning of its own."""

_FIELD_TYPES: tuple[tuple[tuple[str, ...], type, str], ...] = (
    (("n", "top_k", "min_tokens", "max_tokens", "logprobs", "seed"), int, "an integer"),
    (
        ("presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "min_p"),
        numbers.Real,
        "a number",
    ),
    (
        (
            "ignore_eos",
            "detokenize",
            "skip_special_tokens",
            "spaces_between_special_tokens",
            "include_stop_str_in_output",
        ),
        bool,
        "True or False",
    ),
)
"""Fields, the type each must have, and how to say so."""


class OutputKind(str, Enum):
    """What each `RequestOutput` of a request carries."""

    CUMULATIVE = "cumulative"
    DELTA = "delta"
    FINAL_ONLY = "final_only"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters of one request, checked on construction (names and defaults as in vLLM 0.32).

    Attributes:
        n: samples to generate for the prompt.
        presence_penalty: in [-2, 2]; added once for every token already generated.
        frequency_penalty: in [-2, 2]; added per occurrence of a token already generated.
        repetition_penalty: > 0; > 1 discourages tokens of the prompt and of the output so far.
        temperature: in [0, 2]; 0 is greedy.
        top_p: in (0, 1]; keep the smallest set of tokens whose probability reaches it.
        top_k: keep the k most likely tokens; 0 or -1 keeps all.
        min_p: in [0, 1]; drop tokens less likely than this share of the most likely one.
        seed: makes sampling repeatable, whatever else is in the batch; None or -1 takes a random one.
        stop: strings that end the output; a single string or list is accepted.
        stop_token_ids: token ids that end the output.
        ignore_eos: do not end at the model's end-of-text tokens.
        max_tokens: output tokens at most; None means up to the model's context length.
        min_tokens: no end-of-text, stop string or stop token counts before so many output tokens.
        logprobs: log probabilities to report per output token besides the chosen one; -1 is the whole vocabulary.
        detokenize: produce text; stop strings need it.
        skip_special_tokens: leave special tokens out of the text.
        spaces_between_special_tokens: put spaces between special tokens kept in the text.
        include_stop_str_in_output: keep the matched stop string at the end of the text.
        output_kind: what each streamed output carries.

    Raises:
        InvalidRequestError: a value is out of range; `param` names the field.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: OutputKind = OutputKind.CUMULATIVE

    def __post_init__(self) -> None:
        self._check_types()
        self._normalise()
        self._check_ranges()
        self._check_stops()
        if self.is_greedy:
            if self.n > 1:
                raise InvalidRequestError(f"n must be 1 with greedy sampling (temperature 0), got {self.n}.", param="n")
            for field, neutral in (("temperature", 0.0), ("top_p", 1.0), ("top_k", 0), ("min_p", 0.0)):
                object.__setattr__(self, field, neutral)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < GREEDY_TEMPERATURE

    @classmethod
    def from_optional(cls, **values: Any) -> SamplingParams:
        """Builds parameters from keyword arguments in which None means the default."""
        return cls(**{name: value for name, value in values.items() if value is not None or name in _OPTIONAL_FIELDS})

    def clone(self, **changes: Any) -> SamplingParams:
        """Returns a copy with some fields replaced; the result is checked again."""
        return dataclasses.replace(self, **changes)

    def _check_types(self) -> None:
        for fields, kind, name in _FIELD_TYPES:
            for field in fields:
                value = getattr(self, field)
                if value is None and field in _OPTIONAL_FIELDS:
                    continue
                if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                    raise InvalidRequestError(f"{field} must be {name}, got {value!r}.", param=field)

    def _normalise(self) -> None:
        try:
            object.__setattr__(self, "output_kind", OutputKind(self.output_kind))
        except ValueError:
            kinds = ", ".join(kind.value for kind in OutputKind)
            message = f"output_kind must be one of {kinds}, got {self.output_kind!r}."
            raise InvalidRequestError(message, param="output_kind") from None
        stop: Any = self.stop
        object.__setattr__(self, "stop", _as_tuple(stop, "stop", str))
        stop_token_ids: Any = self.stop_token_ids
        object.__setattr__(self, "stop_token_ids", _as_tuple(stop_token_ids, "stop_token_ids", int))
        if self.seed == -1:
            object.__setattr__(self, "seed", None)
        if self.top_k == -1:
            object.__setattr__(self, "top_k", 0)
        if GREEDY_TEMPERATURE <= self.temperature < MIN_TEMPERATURE:
            object.__setattr__(self, "temperature", MIN_TEMPERATURE)

    def _check_ranges(self) -> None:
        _require(1 <= self.n <= MAX_NUM_SAMPLES, "n", f"in [1, {MAX_NUM_SAMPLES}]", self.n)
        _require(-2 <= self.presence_penalty <= 2, "presence_penalty", "in [-2, 2]", self.presence_penalty)
        _require(-2 <= self.frequency_penalty <= 2, "frequency_penalty", "in [-2, 2]", self.frequency_penalty)
        penalty = self.repetition_penalty
        _require(math.isfinite(penalty) and penalty > 0, "repetition_penalty", "finite and greater than 0", penalty)
        _require(0 <= self.temperature <= 2, "temperature", "in [0, 2]", self.temperature)
        _require(0 < self.top_p <= 1, "top_p", "in (0, 1]", self.top_p)
        _require(self.top_k >= 0, "top_k", "-1 or 0 (off), or at least 1", self.top_k)
        _require(0 <= self.min_p <= 1, "min_p", "in [0, 1]", self.min_p)
        if self.max_tokens is not None:
            _require(self.max_tokens >= 1, "max_tokens", "at least 1", self.max_tokens)
            limit = f"in [0, max_tokens = {self.max_tokens}]"
            _require(0 <= self.min_tokens <= self.max_tokens, "min_tokens", limit, self.min_tokens)
        _require(self.min_tokens >= 0, "min_tokens", "at least 0", self.min_tokens)
        if self.logprobs is not None:
            _require(self.logprobs >= -1, "logprobs", "at least 0, or -1 for the whole vocabulary", self.logprobs)
        if self.seed is not None:
            _require(-(2**63) <= self.seed < 2**63, "seed", "a 64-bit integer", self.seed)

    def _check_stops(self) -> None:
        if any(not text for text in self.stop):
            raise InvalidRequestError("stop must not contain an empty string.", param="stop")
        if self.stop and not self.detokenize:
            raise InvalidRequestError("stop strings need detokenize=True.", param="stop")


def _require(holds: bool, field: str, rule: str, value: object) -> None:
    if not holds:
        raise InvalidRequestError(f"{field} must be {rule}, got {value!r}.", param=field)


def _as_tuple(value: Any, field: str, kind: type) -> tuple[Any, ...]:
    if value is None:
        return ()
    if isinstance(value, kind):
        return (value,)
    items = tuple(value) if isinstance(value, Iterable) else (value,)
    if any(isinstance(item, bool) or not isinstance(item, kind) for item in items):
        raise InvalidRequestError(f"{field} must be a list of {kind.__name__} values, got {value!r}.", param=field)
    return items
