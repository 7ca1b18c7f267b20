"""One open request of the fake engine: its samples, and what of them has been handed out."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from vllm_mxext.engine.backends.fake_sample import FakeSample, fake_logprobs
from vllm_mxext.errors import MxError
from vllm_mxext.outputs import PositionLogprobs, RequestMetrics, RequestOutput
from vllm_mxext.requests import GenerateRequest
from vllm_mxext.sampling_params import OutputKind


@dataclass(slots=True)
class OpenRequest:
    """One open request.

    Attributes:
        request: as it came.
        prompt_token_ids: its prompt.
        samples: its outputs in progress.
        metrics: its times.
        changed: set whenever there is something new.
        error: why it failed; None otherwise.
    """

    request: GenerateRequest
    prompt_token_ids: list[int]
    samples: list[FakeSample]
    metrics: RequestMetrics
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    error: MxError | None = None
    _is_prompt_told: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether every sample has ended."""
        return all(sample.finish_reason for sample in self.samples)

    def take_output(self) -> RequestOutput:
        """Returns everything so far, or with `OutputKind.DELTA` what is new."""
        is_delta = self.request.params.output_kind is OutputKind.DELTA
        samples = [sample for sample in self.samples if sample.has_news or not is_delta]
        return RequestOutput(
            self.request.request_id,
            self.request.prompt.text,
            self.prompt_token_ids,
            [sample.take_output() for sample in samples],
            self.is_finished,
            replace(self.metrics),
            num_cached_tokens=len(self.prompt_token_ids) // 16 * 16,
            prompt_logprobs=self._take_prompt_logprobs(),
        )

    def _take_prompt_logprobs(self) -> list[PositionLogprobs | None] | None:
        """Made-up log probabilities of the prompt, once."""
        num_logprobs = self.request.params.prompt_logprobs
        if num_logprobs is None or self._is_prompt_told:
            return None
        self._is_prompt_told = True
        return [None, *(fake_logprobs(token, num_logprobs) for token in self.prompt_token_ids[1:])]
