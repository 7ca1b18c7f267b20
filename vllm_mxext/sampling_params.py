"""`SamplingParams`: how the tokens of one request are chosen and when it stops."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from vllm_mxext.constraint_params import GuidedDecodingParams, RepetitionDetectionParams, StructuredOutputsParams
from vllm_mxext.errors import InvalidRequestError

GREEDY_TEMPERATURE = 1e-5
"""Temperatures below this mean greedy decoding."""

MIN_TEMPERATURE = 1e-2
"""Positive temperatures are raised to this, below which float32 probabilities overflow."""

MAX_NUM_SAMPLES = 16_384

MAX_LOGPROB_TOKEN_IDS = 128

_MAX_LOGIT_BIAS = 100.0

_OPTIONAL_FIELDS = frozenset(
    {
        "seed", "max_tokens", "logprobs", "prompt_logprobs", "best_of", "truncate_prompt_tokens", "stream_interval",
        "thinking_token_budget", "structured_outputs", "repetition_detection", "guided_decoding",
    }
)  # fmt: skip
"""Fields in which None has a meaning of its own."""

_FIELD_TYPES: tuple[tuple[tuple[str, ...], type, str], ...] = (
    (
        (
            "n", "best_of", "top_k", "min_tokens", "max_tokens", "logprobs", "prompt_logprobs", "seed",
            "truncate_prompt_tokens", "stream_interval", "thinking_token_budget", "mirostat", "dry_allowed_length",
            "dry_penalty_last_n",
        ),
        int,
        "an integer",
    ),
    (
        (
            "presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "min_p", "typical_p",
            "top_n_sigma", "xtc_probability", "xtc_threshold", "dry_multiplier", "dry_base", "mirostat_tau",
            "mirostat_eta", "dynatemp_range", "dynatemp_exponent",
        ),
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
            "skip_reading_prefix_cache",
        ),
        bool,
        "True or False",
    ),
    (("structured_outputs",), StructuredOutputsParams, "StructuredOutputsParams"),
    (("repetition_detection",), RepetitionDetectionParams, "RepetitionDetectionParams"),
    (("guided_decoding",), GuidedDecodingParams, "GuidedDecodingParams"),
)  # fmt: skip
"""Fields, the type each must have, and how to say so."""


_NEUTRAL_WHEN_GREEDY = (
    ("temperature", 0.0), ("top_p", 1.0), ("top_k", 0), ("min_p", 0.0), ("typical_p", 1.0), ("top_n_sigma", -1.0),
    ("xtc_probability", 0.0), ("mirostat", 0), ("dynatemp_range", 0.0),
)  # fmt: skip
"""Fields without a meaning when the most likely token is taken, and what they become."""


class OutputKind(str, Enum):
    """What each `RequestOutput` of a request carries."""

    CUMULATIVE = "cumulative"
    DELTA = "delta"
    FINAL_ONLY = "final_only"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters of one request, checked on construction (names and defaults as in vLLM 0.32).

    Attributes:
        n: samples to return for the prompt.
        best_of: samples to generate, of which the `n` with the highest cumulative log probability are returned;
            None = n.
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
        prompt_logprobs: log probabilities to report per prompt token; -1 is the whole vocabulary.
        logprob_token_ids: ids whose log probabilities are reported at every output token.
        logit_bias: token id -> what is added to its logit, clamped to [-100, 100].
        allowed_token_ids: the only ids that may be sampled; None allows all.
        bad_words: texts that the output must not contain.
        truncate_prompt_tokens: keep so many prompt tokens; -1 keeps what the model's context allows; None keeps all.
        truncation_side: which end of a long prompt is cut off.
        structured_outputs: form that the output must have.
        repetition_detection: end the output, with finish reason `repetition`, when it repeats itself.
        thinking_token_budget: tokens of reasoning at most, after which it is closed and the answer begins; -1 and None
            set no limit. Needs an engine that knows how the model marks its reasoning.
        skip_reading_prefix_cache: compute the whole prompt, whatever is cached.
        stream_interval: tokens per streamed output; None is the server's default.
        extra_args: arguments of logits processors that the server has loaded.
        typical_p: in (0, 1]; keep tokens whose information is closest to the entropy until they sum to it.
        top_n_sigma: keep tokens within so many standard deviations of the largest logit; <= 0 is off.
        xtc_probability: in [0, 1]; how often the likeliest tokens above `xtc_threshold`, but for the last, are dropped.
        xtc_threshold: in [0, 1]; above 0.5 is off.
        dry_multiplier: strength of the penalty for tokens that would prolong a repetition; 0 is off.
        dry_base: at least 1; the penalty is `dry_multiplier * dry_base ** (length - dry_allowed_length)`.
        dry_allowed_length: longest repetition without penalty.
        dry_penalty_last_n: tokens looked back at; -1 is all, 0 is off.
        dry_sequence_breakers: texts that end a repetition.
        mirostat: 0 is off, 1 and 2 are the versions of Mirostat; replaces top-k, top-p, min-p and typical.
        mirostat_tau: target surprise in bits.
        mirostat_eta: learning rate of Mirostat.
        dynatemp_range: temperature varies by this much around `temperature` with the entropy; 0 is off.
        dynatemp_exponent: how entropy maps to temperature.
        guided_decoding: `structured_outputs` as vLLM 0.6.6 called it; becomes that.

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
    best_of: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] = "left"
    structured_outputs: StructuredOutputsParams | None = None
    repetition_detection: RepetitionDetectionParams | None = None
    thinking_token_budget: int | None = None
    skip_reading_prefix_cache: bool = False
    stream_interval: int | None = None
    extra_args: dict[str, Any] | None = None
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    guided_decoding: GuidedDecodingParams | None = None

    def __post_init__(self) -> None:
        self._check_types()
        self._normalise()
        self._check_ranges()
        self._check_token_choices()
        self._check_extra_samplers()
        self._check_stops()
        if self.is_greedy:
            if self.num_samples > 1:
                field = "n" if self.n > 1 else "best_of"
                message = f"{field} must be 1 with greedy sampling (temperature 0), got {self.num_samples}."
                raise InvalidRequestError(message, param=field)
            for field, neutral in _NEUTRAL_WHEN_GREEDY:
                object.__setattr__(self, field, neutral)

    @property
    def num_samples(self) -> int:
        """Samples to generate."""
        return self.n if self.best_of is None else self.best_of

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < GREEDY_TEMPERATURE

    @property
    def reports_logprobs(self) -> bool:
        """Whether log probabilities of output tokens are asked for."""
        return self.logprobs is not None or bool(self.logprob_token_ids)

    @classmethod
    def from_optional(cls, **values: Any) -> SamplingParams:
        """Builds parameters from keyword arguments in which None means the default."""
        return cls(**{name: value for name, value in values.items() if value is not None or name in _OPTIONAL_FIELDS})

    def clone(self, **changes: Any) -> SamplingParams:
        """Returns a copy with some fields replaced; the result is checked again."""
        return dataclasses.replace(self, **changes)

    def update_from_generation_config(
        self, generation_config: Mapping[str, Any], eos_token_id: int | None = None
    ) -> SamplingParams:
        """Returns a copy that also stops at the end-of-text ids of a `generation_config.json`, unless it ignores them.

        vLLM changes the object instead, which is not possible here.

        Args:
            generation_config: its content; `eos_token_id` is one id or a list.
            eos_token_id: the tokenizer's, which every request stops at anyway.
        """
        given = generation_config.get("eos_token_id")
        if given is None or self.ignore_eos:
            return self
        ids = [given] if isinstance(given, int) else list(given)
        new = (token_id for token_id in ids if token_id != eos_token_id)
        return self.clone(stop_token_ids=tuple(dict.fromkeys((*self.stop_token_ids, *new))))

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
        for field, kind in (("logprob_token_ids", int), ("bad_words", str), ("dry_sequence_breakers", str)):
            object.__setattr__(self, field, _as_tuple(getattr(self, field), field, kind))
        if self.allowed_token_ids is not None:
            allowed = _as_tuple(self.allowed_token_ids, "allowed_token_ids", int)
            object.__setattr__(self, "allowed_token_ids", allowed)
        if self.logit_bias is not None:
            object.__setattr__(self, "logit_bias", _as_logit_bias(self.logit_bias))
        if self.guided_decoding is not None:
            self._take_guided_decoding(self.guided_decoding)
        if self.seed == -1:
            object.__setattr__(self, "seed", None)
        if self.thinking_token_budget == -1:
            object.__setattr__(self, "thinking_token_budget", None)
        if self.top_k == -1:
            object.__setattr__(self, "top_k", 0)
        if GREEDY_TEMPERATURE <= self.temperature < MIN_TEMPERATURE:
            object.__setattr__(self, "temperature", MIN_TEMPERATURE)

    def _take_guided_decoding(self, guided: GuidedDecodingParams) -> None:
        if self.structured_outputs is not None:
            message = "guided_decoding is the old name of structured_outputs; give one of them."
            raise InvalidRequestError(message, param="guided_decoding")
        object.__setattr__(self, "structured_outputs", guided.structured_outputs())
        object.__setattr__(self, "guided_decoding", None)

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
        if self.prompt_logprobs is not None:
            rule = "at least 0, or -1 for the whole vocabulary"
            _require(self.prompt_logprobs >= -1, "prompt_logprobs", rule, self.prompt_logprobs)
        if self.best_of is not None:
            _require(self.n <= self.best_of <= MAX_NUM_SAMPLES, "best_of", f"at least n = {self.n}", self.best_of)
            is_known_early = self.best_of == self.n or self.output_kind is not OutputKind.DELTA
            _require(
                is_known_early, "best_of", f"n = {self.n} in a stream, as the best are known at its end", self.best_of
            )
        if self.truncate_prompt_tokens is not None:
            value = self.truncate_prompt_tokens
            _require(value >= -1 and value != 0, "truncate_prompt_tokens", "at least 1, or -1", value)
        _require(self.truncation_side in ("left", "right"), "truncation_side", "left or right", self.truncation_side)
        interval, budget = self.stream_interval, self.thinking_token_budget
        _require(interval is None or interval >= 1, "stream_interval", "at least 1", interval)
        _require(budget is None or budget >= 0, "thinking_token_budget", "at least 0, or -1 for no limit", budget)
        if self.seed is not None:
            _require(-(2**63) <= self.seed < 2**63, "seed", "a 64-bit integer", self.seed)

    def _check_token_choices(self) -> None:
        if self.allowed_token_ids is not None:
            _require(bool(self.allowed_token_ids), "allowed_token_ids", "None or not empty", self.allowed_token_ids)
        if any(not text for text in self.bad_words):
            raise InvalidRequestError("bad_words must not contain an empty string.", param="bad_words")
        count = len(self.logprob_token_ids)
        rule = f"a list of at most {MAX_LOGPROB_TOKEN_IDS} ids"
        _require(count <= MAX_LOGPROB_TOKEN_IDS, "logprob_token_ids", rule, f"{count} ids")
        if self.extra_args is not None and not isinstance(self.extra_args, dict):
            raise InvalidRequestError("extra_args must be a dictionary.", param="extra_args")

    def _check_extra_samplers(self) -> None:
        _require(0 < self.typical_p <= 1, "typical_p", "in (0, 1]", self.typical_p)
        _require(math.isfinite(self.top_n_sigma), "top_n_sigma", "finite", self.top_n_sigma)
        for field in ("xtc_probability", "xtc_threshold"):
            _require(0 <= getattr(self, field) <= 1, field, "in [0, 1]", getattr(self, field))
        _require(0 <= self.dry_multiplier <= _MAX_LOGIT_BIAS, "dry_multiplier", "in [0, 100]", self.dry_multiplier)
        _require(1 <= self.dry_base <= _MAX_LOGIT_BIAS, "dry_base", "in [1, 100]", self.dry_base)
        _require(self.dry_allowed_length >= 1, "dry_allowed_length", "at least 1", self.dry_allowed_length)
        _require(self.dry_penalty_last_n >= -1, "dry_penalty_last_n", "at least -1", self.dry_penalty_last_n)
        _require(self.mirostat in (0, 1, 2), "mirostat", "0, 1 or 2", self.mirostat)
        _require(0 <= self.mirostat_tau <= _MAX_LOGIT_BIAS, "mirostat_tau", "in [0, 100]", self.mirostat_tau)
        _require(0 < self.mirostat_eta <= 1, "mirostat_eta", "in (0, 1]", self.mirostat_eta)
        _require(0 <= self.dynatemp_range <= 2, "dynatemp_range", "in [0, 2]", self.dynatemp_range)
        _require(0 < self.dynatemp_exponent <= 10, "dynatemp_exponent", "in (0, 10]", self.dynatemp_exponent)

    def _check_stops(self) -> None:
        if any(not text for text in self.stop):
            raise InvalidRequestError("stop must not contain an empty string.", param="stop")
        if self.stop and not self.detokenize:
            raise InvalidRequestError("stop strings need detokenize=True.", param="stop")


def _require(holds: bool, field: str, rule: str, value: object) -> None:
    if not holds:
        raise InvalidRequestError(f"{field} must be {rule}, got {value!r}.", param=field)


def _as_tuple(value: Any, field: str, kind: type) -> tuple[Any, ...]:
    """One value or many as a tuple, in which each stands once: a vocabulary's worth of ids at most."""
    if value is None:
        return ()
    if isinstance(value, kind):
        return (value,)
    items = tuple(value) if isinstance(value, Iterable) else (value,)
    if any(isinstance(item, bool) or not isinstance(item, kind) for item in items):
        raise InvalidRequestError(f"{field} must be a list of {kind.__name__} values, got {value!r}.", param=field)
    return tuple(dict.fromkeys(items))


def _as_logit_bias(value: Any) -> dict[int, float]:
    """Token ids may be text, as JSON has no other keys; values are clamped."""
    pairs: dict[int, float] = {}
    try:
        pairs = {int(token_id): float(bias) for token_id, bias in dict(value).items()}
    except (TypeError, ValueError):
        pairs = {-1: math.nan}
    if any(math.isnan(bias) for bias in pairs.values()):
        raise InvalidRequestError(f"logit_bias must map token ids to numbers, got {value!r}.", param="logit_bias")
    return {token_id: max(-_MAX_LOGIT_BIAS, min(bias, _MAX_LOGIT_BIAS)) for token_id, bias in pairs.items()}
