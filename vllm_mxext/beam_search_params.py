"""`BeamSearchParams`: how a beam search goes and when it ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vllm_mxext.errors import InvalidRequestError

MAX_BEAM_WIDTH = 1024
MAX_LENGTH_PENALTY = 10.0
"""Lengths to the power of more leave the range of numbers."""


@dataclass(frozen=True, slots=True)
class BeamSearchParams:
    """Parameters of one beam search, checked on construction (names and defaults as in vLLM).

    The result is that of `generate(num_beams=beam_width, length_penalty=..., early_stopping=...)` of transformers: a
    hypothesis scores its log probability divided by its number of output tokens to the power of `length_penalty`.

    Attributes:
        beam_width: beams that go on at every step, at least 1.
        max_tokens: output tokens at most; None means up to the model's context length.
        ignore_eos: go on behind the model's end-of-text tokens.
        temperature: taken for vLLM's callers; the search draws nothing, and its scores are of the raw logits.
        length_penalty: in [-10, 10]; 0 ranks by log probability alone; larger values prefer longer outputs.
        include_stop_str_in_output: keep the end-of-text token in the text, where special tokens are shown.
        early_stopping: when a search ends that has `beam_width` finished hypotheses: True at once; False when the best
            beam, as long as it is now, scores worse than all of them; `never` when no length could make it better.
        n: hypotheses to return, the best ones; None = all `beam_width`.
        logprobs: log probabilities to report per output token besides the chosen one; None reports none.
        skip_special_tokens: leave special tokens out of the text.
        spaces_between_special_tokens: put spaces between special tokens kept in the text.

    Raises:
        InvalidRequestError: a value is out of range; `param` names the field.
    """

    beam_width: int
    max_tokens: int | None = 16
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False
    early_stopping: bool | Literal["never"] = False
    n: int | None = None
    logprobs: int | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True

    def __post_init__(self) -> None:
        _require(
            _is_int(self.beam_width) and 1 <= self.beam_width <= MAX_BEAM_WIDTH,
            "beam_width",
            f"an integer in [1, {MAX_BEAM_WIDTH}]",
            self.beam_width,
        )
        is_limit = self.max_tokens is None or (_is_int(self.max_tokens) and self.max_tokens >= 1)
        _require(is_limit, "max_tokens", "None or an integer of at least 1", self.max_tokens)
        limit, penalty = MAX_LENGTH_PENALTY, self.length_penalty
        _require(-limit <= penalty <= limit, "length_penalty", f"in [{-limit:g}, {limit:g}]", penalty)
        _require(0 <= self.temperature <= 2, "temperature", "in [0, 2]", self.temperature)
        is_known = isinstance(self.early_stopping, bool) or self.early_stopping == "never"
        _require(is_known, "early_stopping", "True, False or 'never'", self.early_stopping)
        is_part = self.n is None or (_is_int(self.n) and 1 <= self.n <= self.beam_width)
        _require(is_part, "n", f"in [1, beam_width = {self.beam_width}]", self.n)
        is_count = self.logprobs is None or (_is_int(self.logprobs) and self.logprobs >= 0)
        _require(is_count, "logprobs", "None or an integer of at least 0", self.logprobs)

    @property
    def num_samples(self) -> int:
        """Samples that the search counts as: one per beam."""
        return self.beam_width

    @property
    def num_returned(self) -> int:
        """Hypotheses to return."""
        return self.beam_width if self.n is None else self.n


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(holds: bool, field: str, rule: str, value: object) -> None:
    if not holds:
        raise InvalidRequestError(f"{field} must be {rule}, got {value!r}.", param=field)
