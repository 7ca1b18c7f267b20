"""`PromptLogprobs`: log probabilities of prompt tokens, computed a few rows at a time as their chunks come by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from vllm_mxext.native.protocol import NewRequestData, SchedulerOutput, TokenLogprobs
from vllm_mxext.native.sampling.logprobs import token_logprobs

MAX_LOGITS_BYTES = 64 * 2**20
"""Logits of prompt tokens that exist at once."""


@dataclass(slots=True)
class _Asking:
    """A request whose prompt's log probabilities are wanted.

    Attributes:
        prompt_token_ids: its prompt.
        num_logprobs: as `SamplingParams.prompt_logprobs`.
        next_position: first position whose successor has not been told of.
    """

    prompt_token_ids: list[int]
    num_logprobs: int
    next_position: int


@dataclass(slots=True)
class PromptRows:
    """Rows of one step behind which prompt tokens stand.

    Attributes:
        indices: `[n]` int32, ascending rows of the step's tokens.
        max_rows: of these at a time.
        logprobs: request id -> log probabilities of consecutive prompt tokens; complete after the step.
    """

    indices: torch.Tensor
    max_rows: int
    _owners: list[tuple[str, int, int]]
    _num_taken: int = 0
    logprobs: dict[str, list[TokenLogprobs]] = field(default_factory=dict)

    def take(self, logits: torch.Tensor) -> None:
        """Takes the logits of the next rows: `[at most max_rows, vocab_size]` float32."""
        rows = logits.to(device="cpu", dtype=torch.float32).numpy()
        owners = self._owners[self._num_taken : self._num_taken + len(rows)]
        for row, (request_id, token_id, num_logprobs) in zip(rows, owners, strict=True):
            self.logprobs.setdefault(request_id, []).append(token_logprobs(row, token_id, num_logprobs))
        self._num_taken += len(rows)


class PromptLogprobs:
    """Knows which requests want log probabilities of their prompts, and how far they are.

    Args:
        vocab_size: width of the logits.
        max_rows: rows that the buffer of logits has.
        device: of the forward pass.
    """

    def __init__(self, vocab_size: int, max_rows: int, device: torch.device) -> None:
        self._max_rows = max(1, min(max_rows, MAX_LOGITS_BYTES // (4 * vocab_size)))
        self._device = device
        self._asking: dict[str, _Asking] = {}

    def drop(self, request_ids: Iterable[str]) -> None:
        """Forgets requests; unknown ids are ignored."""
        for request_id in request_ids:
            self._asking.pop(request_id, None)

    def rows(self, scheduled: SchedulerOutput, drafts: Mapping[str, Sequence[int]]) -> PromptRows | None:
        """Returns the rows of a step that are wanted; None if there are none, as nearly always.

        Args:
            scheduled: the step.
            drafts: request id -> draft tokens computed behind its scheduled ones.
        """
        self.drop(scheduled.finished_request_ids)
        for new in scheduled.new_requests:
            self._add(new)
        if not self._asking:
            return None
        indices: list[np.ndarray] = []
        owners: list[tuple[str, int, int]] = []
        first_row = 0
        computed = {data.request_id: data.num_computed_tokens for data in scheduled.new_requests}
        computed |= {data.request_id: data.num_computed_tokens for data in scheduled.cached_requests}
        for request_id, num_tokens in scheduled.num_scheduled_tokens.items():
            asking = self._asking.get(request_id)
            if asking is not None:
                start = computed[request_id]
                prompt = asking.prompt_token_ids
                first, end = max(start, asking.next_position), min(start + num_tokens, len(prompt) - 1)
                if first < end:
                    indices.append(np.arange(first_row + first - start, first_row + end - start, dtype=np.int32))
                    owners += [(request_id, token_id, asking.num_logprobs) for token_id in prompt[first + 1 : end + 1]]
                    asking.next_position = end
                if asking.next_position >= len(prompt) - 1:
                    del self._asking[request_id]
            first_row += num_tokens + len(drafts.get(request_id, ()))
        if not indices:
            return None
        return PromptRows(torch.from_numpy(np.concatenate(indices)).to(self._device), self._max_rows, owners)

    def _add(self, new: NewRequestData) -> None:
        num_logprobs = new.params.prompt_logprobs
        if num_logprobs is None or new.num_prompt_logprobs >= new.num_prompt_tokens - 1:
            return
        prompt = new.token_ids[: new.num_prompt_tokens]
        self._asking[new.request_id] = _Asking(prompt, num_logprobs, new.num_prompt_logprobs)
