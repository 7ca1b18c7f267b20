"""Rarely used parameters of one request in the form the sampler applies them: `RowControls`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vllm_mxext.native.protocol import TokenRules
from vllm_mxext.native.sampling.dry import Dry, dry
from vllm_mxext.native.sampling.extra_filters import ExtraFilters, extra_filters
from vllm_mxext.sampling_params import SamplingParams

_F32 = npt.NDArray[np.float32]
_Ids = npt.NDArray[np.int64]


class LogitsProcessorError(Exception):
    """A plug-in failed on a request's logits; its text says how."""


class Processors(Protocol):
    """Plug-ins that change the logits of one request."""

    def apply(self, row: _F32, output_token_ids: npt.NDArray[Any]) -> None:
        """Changes `[vocab_size]` logits in place.

        Raises:
            LogitsProcessorError: a plug-in failed.
        """
        ...


@dataclass(frozen=True, slots=True)
class RowControls:
    """What only few requests ask for; a row without any of it pays nothing.

    Attributes:
        bias_ids: ids whose logits are shifted.
        biases: `[len(bias_ids)]` by how much.
        allowed_ids: the only ids that may be sampled; None allows all.
        bad_words: token sequences that the output must not contain.
        logprob_ids: ids whose log probabilities are reported at every position.
        dry: penalty for prolonging repetitions.
        filters: samplers besides top-k, top-p and min-p.
        processors: plug-ins.
    """

    bias_ids: _Ids
    biases: _F32
    allowed_ids: _Ids | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    logprob_ids: tuple[int, ...] = ()
    dry: Dry | None = None
    filters: ExtraFilters | None = None
    processors: Processors | None = None

    @property
    def needs_tokens(self) -> bool:
        """Whether the tokens so far matter."""
        return bool(self.bad_words) or self.dry is not None or self.processors is not None

    @property
    def changes_logits(self) -> bool:
        """Whether logits are changed before they are filtered."""
        return self.needs_tokens or bool(len(self.bias_ids)) or self.allowed_ids is not None

    def apply(self, row: _F32, output: npt.NDArray[Any]) -> None:
        """Shifts and forbids tokens, in place.

        Args:
            row: `[vocab_size]` logits.
            output: the row's output tokens so far, if `needs_tokens`.
        """
        if len(self.bias_ids):
            row[self.bias_ids] += self.biases
        if self.allowed_ids is not None and np.isfinite(row.max()):  # unusable logits must not be hidden
            kept = row[self.allowed_ids]
            row.fill(-np.inf)
            row[self.allowed_ids] = kept
        for word in self.bad_words:
            prefix = word[:-1]
            if len(prefix) <= len(output) and output[len(output) - len(prefix) :].tolist() == list(prefix):
                row[word[-1]] = -np.inf


def row_controls(
    params: SamplingParams, rules: TokenRules | None, processors: Processors | None = None
) -> RowControls | None:
    """Returns a request's rare parameters; None if it has none, as nearly all requests."""
    bias = params.logit_bias or {}
    allowed = params.allowed_token_ids
    bad_words = rules.bad_words if rules else []
    repetition, filters = dry(params, rules), extra_filters(params)
    if not (bias or allowed or bad_words or params.logprob_token_ids or repetition or filters or processors):
        return None
    return RowControls(
        bias_ids=np.fromiter(bias, dtype=np.int64, count=len(bias)),
        biases=np.fromiter(bias.values(), dtype=np.float32, count=len(bias)),
        allowed_ids=None if allowed is None else np.unique(np.array(allowed, dtype=np.int64)),
        bad_words=tuple(tuple(word) for word in bad_words),
        logprob_ids=params.logprob_token_ids,
        dry=repetition,
        filters=filters,
        processors=processors,
    )
