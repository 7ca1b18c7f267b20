"""State of one open request: its samples, merged into the outputs a caller sees."""

from __future__ import annotations

from collections.abc import Callable

from vllm_mxext.engine.frontend.input_processor import ProcessedRequest
from vllm_mxext.engine.frontend.sample_state import SampleState
from vllm_mxext.errors import EngineError
from vllm_mxext.outputs import RequestMetrics, RequestOutput
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
        self._stream_interval = processed.request.params.stream_interval or stream_interval

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

    def take_output(self) -> RequestOutput | None:
        """Returns what is new since the last call in the form the request asked for, or None."""
        kind = self.processed.request.params.output_kind
        if kind is OutputKind.FINAL_ONLY and not self.is_finished:
            return None
        due = [sample for sample in self.samples if sample.is_due(self._stream_interval)]
        if not due:
            return None
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.processed.prompt_text,
            prompt_token_ids=self.processed.prompt_token_ids,
            outputs=[sample.take(kind) for sample in (due if kind is OutputKind.DELTA else self.samples)],
            finished=self.is_finished,
            metrics=self.metrics,
            num_cached_tokens=self.num_cached_tokens,
        )
