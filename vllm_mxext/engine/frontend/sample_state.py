"""Text state of one sample: tokens, text, log probabilities, and what of these was already given out."""

from __future__ import annotations

from typing import cast

from vllm_mxext.engine.frontend.position_logprobs import position_logprobs
from vllm_mxext.engine.frontend.sample_text import SampleText
from vllm_mxext.native.protocol import EngineCoreOutput, EngineCoreRequest, FinishReason, TokenLogprobs
from vllm_mxext.outputs import CompletionOutput, FinishReasonName, PositionLogprobs
from vllm_mxext.sampling_params import OutputKind
from vllm_mxext.tokenizer.interface import Tokenizer


class SampleState:
    """One sample of an open request.

    What has been generated waits here until it is taken, so a slow consumer gets fewer, larger outputs and memory is
    bounded by the output itself.

    Attributes:
        request: the core request as first sent.
        index: which of the request's samples.
        token_ids: output tokens so far; those behind a stop string are not among them.
        finish_reason: None while running.
        stop_reason: stop string or stop token id that ended it.
        has_output: whether the core has reported anything for it.
        has_line_break: whether its text goes over more than one line.
        last_token_s: when its newest tokens came.
        sampler_state: what the sampler has learnt with the newest token.
    """

    def __init__(self, request: EngineCoreRequest, index: int, tokenizer: Tokenizer) -> None:
        self.request = request
        self.index = index
        self.token_ids: list[int] = []
        self.finish_reason: FinishReasonName | None = None
        self.stop_reason: int | str | None = None
        self.has_output = False
        self.has_line_break = False
        self.last_token_s: float | None = None
        self.sampler_state: float | None = None
        self._tokenizer = tokenizer
        self._params = request.params
        self._text = SampleText(request, tokenizer) if request.params.detokenize else None
        self._parts: list[str] = []
        self._logprobs: list[PositionLogprobs] = []
        self._cumulative_logprob = 0.0
        self._num_taken_tokens = 0
        self._is_changed = False

    def add(self, output: EngineCoreOutput) -> None:
        """Takes what one engine step brought; ends the sample at a stop string or with the core's finish reason."""
        self.has_output = True
        self.sampler_state = output.sampler_state
        ends_with_stop = output.finish_reason is FinishReason.STOP and not output.is_whole
        stops_at = len(output.new_token_ids) - 1 if ends_with_stop else -1
        for i, token_id in enumerate(output.new_token_ids):
            self._is_changed = True
            self.token_ids.append(token_id)
            if output.logprobs is not None:
                self._add_logprobs(output.logprobs[i])
            if self._text is None or (i == stops_at and not self._params.include_stop_str_in_output):
                continue
            self._parts.append(self._text.push(token_id, len(self.token_ids)))
            self.has_line_break = self.has_line_break or "\n" in self._parts[-1]
            if self._text.stop is not None:
                self._end("stop", self._text.stop)
                return
        if output.finish_reason is not None:
            self.finish(cast("FinishReasonName", output.finish_reason.name.lower()), output.stop_reason)

    def finish(self, reason: FinishReasonName, stop_reason: int | str | None = None) -> None:
        """Ends the sample and releases text held back; without effect if it has ended already."""
        if self.finish_reason is not None:
            return
        if self._text is not None and reason != "error":
            self._parts.append(self._text.flush(len(self.token_ids)))
            if self._text.stop is not None:
                reason, stop_reason = "stop", self._text.stop
        self._end(reason, stop_reason)

    def take(self, kind: OutputKind) -> CompletionOutput:
        """Returns everything so far, or with `OutputKind.DELTA` everything since the last call."""
        is_delta = kind is OutputKind.DELTA
        text = "".join(self._parts)
        self._parts = [] if is_delta else [text]
        token_ids = self.token_ids[self._num_taken_tokens :] if is_delta else list(self.token_ids)
        logprobs: list[PositionLogprobs] | None = None
        if self._params.reports_logprobs:
            logprobs = self._logprobs
            self._logprobs = [] if is_delta else list(logprobs)
        self._num_taken_tokens = len(self.token_ids)
        self._is_changed = False
        return CompletionOutput(
            index=self.index,
            text=text,
            token_ids=token_ids,
            cumulative_logprob=None if logprobs is None else self._cumulative_logprob,
            logprobs=logprobs,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )

    def is_due(self, stream_interval: int) -> bool:
        """Whether there is something to take that need not wait for more: the beginning, the end, enough tokens."""
        num_new = len(self.token_ids) - self._num_taken_tokens
        is_due = self.is_finished or self._num_taken_tokens == 0 or num_new >= stream_interval
        return self._is_changed and is_due

    @property
    def is_finished(self) -> bool:
        """Whether the sample has ended."""
        return self.finish_reason is not None

    def _end(self, reason: FinishReasonName, stop_reason: int | str | None) -> None:
        self.finish_reason = reason
        self.stop_reason = stop_reason
        self._is_changed = True

    def _add_logprobs(self, entry: TokenLogprobs) -> None:
        self._logprobs.append(position_logprobs(entry, None if self._text is None else self._tokenizer))
        self._cumulative_logprob += entry.logprobs[0]
