"""State of one open request: its samples, merged into the outputs a caller sees."""

from __future__ import annotations

from collections.abc import Callable

from vllm_mxext.engine.frontend.input_processor import ProcessedRequest
from vllm_mxext.engine.frontend.position_logprobs import position_logprobs
from vllm_mxext.engine.frontend.sample_state import SampleState
from vllm_mxext.errors import EngineError
from vllm_mxext.native.protocol import TokenLogprobs
from vllm_mxext.outputs import CompletionOutput, PositionLogprobs, RequestMetrics, RequestOutput
from vllm_mxext.sampling_params import OutputKind
from vllm_mxext.tokenizer.interface import Tokenizer


class RequestState:
    """One open request.

    Attributes:
        processed: the request after validation.
        samples: its samples, ordered by index.
        metrics: its times.
        num_cached_tokens: prompt tokens of the first sample found in the prefix cache.
        error: why it failed in the engine; None otherwise.
        num_open_samples: samples that have not ended.
        on_change: called whenever there is something new to take.
    """

    def __init__(
        self,
        processed: ProcessedRequest,
        tokenizer: Tokenizer,
        on_change: Callable[[], None] | None,
        stream_interval: int = 1,
    ) -> None:
        self.processed = processed
        self.samples = [SampleState(sample, index, tokenizer) for index, sample in enumerate(processed.samples)]
        self.metrics = RequestMetrics(arrival_s=processed.arrival_s)
        self.num_cached_tokens: int | None = None
        self.error: EngineError | None = None
        self.num_open_samples = len(self.samples)
        self.on_change = on_change
        self._tokenizer = tokenizer
        self._prompt_logprobs: list[PositionLogprobs | None] = [None]
        self._is_prompt_told = False
        params = processed.request.params
        self._stream_interval = params.stream_interval or stream_interval
        self._output_kind = OutputKind.FINAL_ONLY if params.num_samples > params.n else params.output_kind

    @property
    def request_id(self) -> str:
        """The caller's id."""
        return self.processed.request.request_id

    @property
    def is_finished(self) -> bool:
        """Whether every sample has ended."""
        return self.num_open_samples == 0

    def notify(self) -> None:
        """Tells whoever consumes this request that there may be something to take."""
        if self.on_change is not None:
            self.on_change()

    def add_prompt_logprobs(self, entries: list[TokenLogprobs]) -> None:
        """Takes the log probabilities of the next prompt tokens."""
        tokenizer = self._tokenizer if self.processed.request.params.detokenize else None
        self._prompt_logprobs += [position_logprobs(entry, tokenizer) for entry in entries]

    @property
    def num_prompt_logprobs(self) -> int:
        """Prompt tokens whose log probabilities are here; the first one has none."""
        return len(self._prompt_logprobs) - 1

    def _take_prompt_logprobs(self, kind: OutputKind) -> list[PositionLogprobs | None] | None:
        """Returns the prompt's log probabilities once they are complete; with `OutputKind.DELTA` only once."""
        is_complete = len(self._prompt_logprobs) == len(self.processed.prompt_token_ids)
        if self.processed.request.params.prompt_logprobs is None or not is_complete or self._is_prompt_told:
            return None
        self._is_prompt_told = kind is OutputKind.DELTA
        return self._prompt_logprobs

    def _best(self, outputs: list[CompletionOutput]) -> list[CompletionOutput]:
        """Returns the samples to hand out: all, or the `n` most likely ones of `best_of`, the most likely first."""
        params = self.processed.request.params
        if params.num_samples == params.n:
            return outputs
        ranked = sorted(outputs, key=lambda output: output.cumulative_logprob or 0.0, reverse=True)[: params.n]
        for index, output in enumerate(ranked):
            output.index = index
            if not params.reports_logprobs:
                output.logprobs = None
        return ranked

    def take_output(self) -> RequestOutput | None:
        """Returns what is new since the last call in the form the request asked for, or None."""
        kind = self._output_kind
        if kind is OutputKind.FINAL_ONLY and not self.is_finished:
            return None
        due = [sample for sample in self.samples if sample.is_due(self._stream_interval)]
        if not due:
            return None
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.processed.prompt_text,
            prompt_token_ids=self.processed.prompt_token_ids,
            outputs=self._best([sample.take(kind) for sample in (due if kind is OutputKind.DELTA else self.samples)]),
            finished=self.is_finished,
            metrics=self.metrics,
            num_cached_tokens=self.num_cached_tokens,
            prompt_logprobs=self._take_prompt_logprobs(kind),
        )
