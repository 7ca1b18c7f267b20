"""What the sampler is told about its rows (`SamplingColumns`, `SamplingMetadata`) and answers (`SamplerOutput`).

Use by the model runner:

    columns = SamplingColumns(max_num_reqs)                 # once
    columns.set_row(row, params, seed, eos_token_ids)       # when a request gets its persistent row
    columns.move_row(source, target)                        # when rows are compacted
    metadata = columns.select(rows, ...)                    # every step: the rows that sample, in logits order
    output = sampler.sample(logits, metadata)               # logits: [len(rows), vocab_size]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from vllm_mxext.native.protocol import TokenLogprobs, TokenRules
from vllm_mxext.native.sampling.controls import Processors, RowControls, row_controls
from vllm_mxext.native.sampling.thinking import ThinkingBudget
from vllm_mxext.sampling_params import SamplingParams

FAILED_TOKEN_ID = -1
"""Stands for the token of a row whose logits were unusable (NaN, +inf or nothing left); the request must fail."""

NO_LOGPROBS = -2
"""Value of `num_logprobs` for rows that did not ask; -1 asks for the whole vocabulary."""

_MASK_64 = (1 << 64) - 1

_LARGEST_REPETITION = 1e20
"""Repetition penalties are kept within this factor of 1, so that no logit leaves the range of float32."""


@dataclass(frozen=True, slots=True)
class RowTokens:
    """Tokens so far of one row to which they matter.

    Attributes:
        token_ids: `[num_tokens]` prompt and output ids; may be a view into the runner's buffer.
        num_prompt_tokens: how many of them are prompt.
    """

    token_ids: npt.NDArray[Any]
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class SamplingMetadata:
    """Sampling inputs of one step, row `i` belonging to logits row `i` (`n` rows).

    Attributes:
        temperature: `[n]` float32, 0 = greedy.
        top_k: `[n]` int32, 0 = off.
        top_p: `[n]` float32, 1 = off.
        min_p: `[n]` float32, 0 = off.
        presence_penalty: `[n]` float32, 0 = off.
        frequency_penalty: `[n]` float32, 0 = off.
        repetition_penalty: `[n]` float32, 1 = off.
        seed: `[n]` uint64, seed of the request's noise.
        position: `[n]` int64, index within prompt + output of the token being sampled (= number of tokens so far).
        num_logprobs: `[n]` int32, `NO_LOGPROBS`, -1 for the whole vocabulary, or how many most likely tokens to report.
        tokens: row -> its tokens so far; only rows with penalties or with controls that look at them.
        suppressed: row -> ids that must not be sampled; only rows below their `min_tokens`.
        controls: row -> its rare parameters; only rows that have any.
        request_row: `[n]` rows of equal number belong to one request and follow each other in order of position.
        logprob_rows: rows that report log probabilities.
        is_greedy: whether no row is drawn: their temperatures are all 0.
        states: row -> what the sampler has learnt of its request (Mirostat); only the first row of a request.
        allowed_bitmask: row -> bits of the ids that may be sampled, 32 to a word; only rows with a grammar.
        forced: row -> the id to sample; only rows that close a reasoning whose budget is spent.
    """

    temperature: npt.NDArray[np.float32]
    top_k: npt.NDArray[np.int32]
    top_p: npt.NDArray[np.float32]
    min_p: npt.NDArray[np.float32]
    presence_penalty: npt.NDArray[np.float32]
    frequency_penalty: npt.NDArray[np.float32]
    repetition_penalty: npt.NDArray[np.float32]
    seed: npt.NDArray[np.uint64]
    position: npt.NDArray[np.int64]
    num_logprobs: npt.NDArray[np.int32]
    request_row: npt.NDArray[np.integer[Any]]
    logprob_rows: Sequence[int]
    is_greedy: bool
    tokens: dict[int, RowTokens] = field(default_factory=dict)
    suppressed: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)
    controls: dict[int, RowControls] = field(default_factory=dict)
    states: dict[int, float] = field(default_factory=dict)
    allowed_bitmask: dict[int, npt.NDArray[np.int32]] = field(default_factory=dict)
    forced: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SamplerOutput:
    """Sampled tokens of one step.

    Attributes:
        token_ids: `[n]` int64 on the host; `FAILED_TOKEN_ID` marks a row that has to fail, the others are not affected.
        logprobs: row -> log probabilities, for rows that asked and did not fail.
        states: row -> what the sampler has learnt of its request with this row's token; for rows with Mirostat.
        errors: row -> which plug-in failed on it, and how; such a row has failed.
    """

    token_ids: npt.NDArray[np.int64]
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    states: dict[int, float] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Selection:
    """What the rows of a step have in common with those of the next one, if they are the same: all but their lengths.

    Attributes:
        rows: the persistent rows.
        metadata: of the step.
        token_rows: indices into `rows` of those whose tokens matter.
        has_min_tokens: whether any of them has `min_tokens`.
        budgets: index into `rows` -> limit of its reasoning; only rows that have one.
    """

    rows: npt.NDArray[np.integer[Any]]
    metadata: SamplingMetadata
    token_rows: Sequence[int]
    has_min_tokens: bool
    budgets: dict[int, ThinkingBudget]


class SamplingColumns:
    """Sampling parameters of the runner's persistent rows, one array per parameter.

    Args:
        max_num_rows: rows of the persistent batch.
    """

    def __init__(self, max_num_rows: int) -> None:
        self.temperature = np.zeros(max_num_rows, dtype=np.float32)
        self.top_k = np.zeros(max_num_rows, dtype=np.int32)
        self.top_p = np.ones(max_num_rows, dtype=np.float32)
        self.min_p = np.zeros(max_num_rows, dtype=np.float32)
        self.presence_penalty = np.zeros(max_num_rows, dtype=np.float32)
        self.frequency_penalty = np.zeros(max_num_rows, dtype=np.float32)
        self.repetition_penalty = np.ones(max_num_rows, dtype=np.float32)
        self.seed = np.zeros(max_num_rows, dtype=np.uint64)
        self.num_logprobs = np.full(max_num_rows, NO_LOGPROBS, dtype=np.int32)
        self.min_tokens = np.zeros(max_num_rows, dtype=np.int64)
        self._stop_ids: list[npt.NDArray[np.int64] | None] = [None] * max_num_rows
        self._controls: dict[int, RowControls] = {}
        self._states: dict[int, float] = {}
        self._budgets: dict[int, ThinkingBudget] = {}
        self._arrays: tuple[npt.NDArray[Any], ...] = tuple(
            value for value in vars(self).values() if isinstance(value, np.ndarray)
        )
        self._selection: _Selection | None = None
        """The last one, unless rows have changed since."""

    def set_row(
        self,
        row: int,
        params: SamplingParams,
        seed: int,
        eos_token_ids: Sequence[int] = (),
        rules: TokenRules | None = None,
        state: float | None = None,
        processors: Processors | None = None,
    ) -> None:
        """Overwrites a row with the parameters of a request.

        Args:
            row: the persistent row.
            params: the request's parameters.
            seed: any 64-bit integer, signed or not.
            eos_token_ids: ids that end its output, suppressed below `min_tokens`.
            rules: texts of `params` as tokens.
            state: what the sampler has learnt of the request before.
            processors: plug-ins that change its logits.
        """
        self._selection = None
        self.temperature[row] = 0.0 if params.is_greedy else params.temperature
        self.top_k[row] = min(params.top_k, np.iinfo(np.int32).max)
        self.top_p[row] = params.top_p
        self.min_p[row] = params.min_p
        self.presence_penalty[row] = params.presence_penalty
        self.frequency_penalty[row] = params.frequency_penalty
        self.repetition_penalty[row] = min(max(params.repetition_penalty, 1 / _LARGEST_REPETITION), _LARGEST_REPETITION)
        self.seed[row] = seed & _MASK_64
        num_logprobs = min(params.logprobs or 0, 2**31 - 1)
        self.num_logprobs[row] = num_logprobs if params.reports_logprobs else NO_LOGPROBS
        stop_ids = sorted({*eos_token_ids, *params.stop_token_ids}) if params.min_tokens else []
        self.min_tokens[row] = params.min_tokens if stop_ids else 0
        self._stop_ids[row] = np.array(stop_ids, dtype=np.int64) if stop_ids else None
        _assign(self._controls, row, row_controls(params, rules, processors))
        _assign(self._states, row, state)
        thinking, limit = rules.thinking if rules else None, params.thinking_token_budget
        _assign(self._budgets, row, None if thinking is None or limit is None else ThinkingBudget(limit, thinking))

    def set_state(self, row: int, state: float) -> None:
        """Keeps what the sampler has learnt of a row's request, with its newest token that is kept."""
        self._states[row] = state

    def move_row(self, source: int, target: int) -> None:
        """Copies a row over another one; `source` is free afterwards."""
        self._selection = None
        for array in self._arrays:
            array[target] = array[source]
        self._stop_ids[target] = self._stop_ids[source]
        self._stop_ids[source] = None
        _assign(self._controls, target, self._controls.pop(source, None))
        _assign(self._states, target, self._states.pop(source, None))
        _assign(self._budgets, target, self._budgets.pop(source, None))

    def select(
        self,
        rows: npt.NDArray[np.integer[Any]],
        num_tokens: npt.NDArray[np.integer[Any]],
        num_prompt_tokens: npt.NDArray[np.integer[Any]],
        token_ids: npt.NDArray[Any],
        num_settled: npt.NDArray[np.integer[Any]] | None = None,
    ) -> SamplingMetadata:
        """Gathers the rows that sample in this step; what is returned is valid until the next call.

        Args:
            rows: `[n]` persistent rows in the order of the logits; passing the same array again says they are the same.
            num_tokens: `[n]` prompt + output tokens so far of each of these.
            num_prompt_tokens: `[n]` how many of these are prompt.
            token_ids: `[max_num_rows, max_model_len]` the runner's token buffer, indexed by persistent row.
            num_settled: `[n]` how many of `num_tokens` are no drafts; None is all.
        """
        selection = self._selection
        if selection is None or selection.rows is not rows:
            selection = self._selection = self._gather(rows)
        metadata = selection.metadata
        metadata.position[:] = num_tokens
        if not (selection.token_rows or selection.has_min_tokens or selection.budgets or self._states):
            return metadata
        tokens = {
            i: RowTokens(token_ids[rows[i], : num_tokens[i]], int(num_prompt_tokens[i])) for i in selection.token_rows
        }
        suppressed: dict[int, npt.NDArray[np.int64]] = {}
        for i in np.flatnonzero(self.min_tokens[rows] > num_tokens - num_prompt_tokens).tolist():
            stop_ids = self._stop_ids[rows[i]]
            if stop_ids is not None:
                suppressed[i] = stop_ids
        forced: dict[int, int] = {}
        settled = num_tokens if num_settled is None else num_settled
        for i, budget in selection.budgets.items():
            first = num_prompt_tokens[i]
            token_id = budget.forced(token_ids[rows[i], first : num_tokens[i]], int(settled[i] - first))
            if token_id is not None:
                forced[i] = token_id
        states = _select(self._states, rows)
        return replace(metadata, tokens=tokens, suppressed=suppressed, states=states, forced=forced)

    def _gather(self, rows: npt.NDArray[np.integer[Any]]) -> _Selection:
        temperature, num_logprobs = self.temperature[rows], self.num_logprobs[rows]
        presence, frequency = self.presence_penalty[rows], self.frequency_penalty[rows]
        repetition = self.repetition_penalty[rows]
        controls = _select(self._controls, rows)
        looking = [i for i, control in controls.items() if control.needs_tokens]
        penalised = np.flatnonzero((presence != 0) | (frequency != 0) | (repetition != 1)).tolist()
        metadata = SamplingMetadata(
            temperature=temperature,
            top_k=self.top_k[rows],
            top_p=self.top_p[rows],
            min_p=self.min_p[rows],
            presence_penalty=presence,
            frequency_penalty=frequency,
            repetition_penalty=repetition,
            seed=self.seed[rows],
            position=np.zeros(len(rows), dtype=np.int64),
            num_logprobs=num_logprobs,
            logprob_rows=np.flatnonzero(num_logprobs != NO_LOGPROBS).tolist(),
            is_greedy=not temperature.any(),
            controls=controls,
            request_row=rows,
        )
        return _Selection(
            rows,
            metadata,
            sorted({*penalised, *looking}),
            bool(self.min_tokens[rows].any()),
            _select(self._budgets, rows),
        )


_Value = TypeVar("_Value")


def _assign(values: dict[int, _Value], row: int, value: _Value | None) -> None:
    if value is None:
        values.pop(row, None)
    else:
        values[row] = value


def _select(values: dict[int, _Value], rows: npt.NDArray[np.integer[Any]]) -> dict[int, _Value]:
    """Returns the values that some of `rows` have, by place in `rows`."""
    if not values:
        return {}
    return {i: values[row] for i, row in enumerate(rows.tolist()) if row in values}
