"""`BeamSearch`: one beam search, step by step, over any engine that serves requests with log probabilities."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from vllm_mxext.engine.frontend.input_processor import InputProcessor, ProcessedRequest
from vllm_mxext.native.protocol import AdapterKey
from vllm_mxext.outputs import (
    CompletionOutput,
    FinishReasonName,
    PositionLogprobs,
    RequestMetrics,
    RequestOutput,
)
from vllm_mxext.requests import BeamSearchRequest, GenerateRequest, TokensPrompt
from vllm_mxext.sampling_params import OutputKind, SamplingParams
from vllm_mxext.tokenizer.interface import Tokenizer


@dataclass(frozen=True, slots=True)
class _Hypothesis:
    """Output tokens with their log probability, the entries of each position, and how they rank once finished."""

    token_ids: tuple[int, ...] = ()
    logprob: float = 0.0
    positions: tuple[PositionLogprobs, ...] = ()
    score: float = 0.0
    finish_reason: FinishReasonName | None = None


class BeamSearch:
    """A search with the rules of transformers' `generate(num_beams=...)`; it computes nothing itself.

    Each step asks for the likeliest next tokens of every beam (`next_steps()`) and takes them (`advance()`). The steps
    are requests for one token, whose prompts the prefix cache knows.

    Args:
        request: the search.
        processed: the same prompt after validation, as one request of `max_tokens` tokens.
    """

    def __init__(self, request: BeamSearchRequest, processed: ProcessedRequest) -> None:
        whole = processed.samples[0]
        assert whole.params.max_tokens is not None  # the input processor has looked it up
        self.request = request
        self.metrics = RequestMetrics(processed.arrival_s)
        self.num_cached_tokens: int | None = None
        self._processed = processed
        self._params = request.params
        self._max_tokens = whole.params.max_tokens
        self._eos = frozenset() if request.params.ignore_eos else frozenset(whole.eos_token_ids)
        # So many of the best continuations always have `beam_width` that do not end the text among them.
        self._num_candidates = max(2, 1 + len(self._eos)) * request.params.beam_width
        self._step_params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            logprobs=self._num_candidates,
            ignore_eos=True,
            detokenize=False,
            output_kind=OutputKind.FINAL_ONLY,
        )
        self._beams = [_Hypothesis()]
        self._finished: list[_Hypothesis] = []
        self._num_steps = 0
        self.is_finished = False

    @classmethod
    def begin(
        cls,
        request: BeamSearchRequest,
        processor: InputProcessor,
        arrival_s: float,
        adapter: AdapterKey | None = None,
    ) -> BeamSearch:
        """Tokenizes and checks a search; its adapter is given as id and generation.

        Raises:
            InvalidRequestError: it cannot be served as it is.
        """
        given = request.params
        params = SamplingParams(temperature=0.0, max_tokens=given.max_tokens, logprobs=given.logprobs, seed=0)
        whole = GenerateRequest(
            request.request_id,
            request.prompt,
            params,
            request.priority,
            request.cache_salt,
            adapter=request.adapter,
            adapter_scale=request.adapter_scale,
        )
        return cls(request, processor.process(whole, arrival_s, adapter))

    @property
    def processed(self) -> ProcessedRequest:
        """The prompt after validation."""
        return self._processed

    @property
    def has_output(self) -> bool:
        """Whether there is a token to return."""
        return self._num_steps > 0

    def next_steps(self) -> list[ProcessedRequest]:
        """Returns the requests of the next step, one per beam, for `advance()`."""
        whole = self._processed.samples[0]
        steps = []
        for index, beam in enumerate(self._beams):
            token_ids = [*whole.prompt_token_ids, *beam.token_ids]
            step_id = f"{self.request.request_id}/{self._num_steps}.{index}"
            core_request = msgspec.structs.replace(
                whole,
                request_id=f"{whole.request_id}/{self._num_steps}.{index}",
                prompt_token_ids=token_ids,
                params=self._step_params,
                group_id=whole.request_id,
            )
            request = GenerateRequest(step_id, TokensPrompt(tuple(token_ids)), self._step_params, whole.priority)
            steps.append(ProcessedRequest(request, None, token_ids, (core_request,), is_step=True))
        return steps

    def advance(self, outputs: Sequence[RequestOutput]) -> None:
        """Takes the outputs of `next_steps()`, in their order; one that failed or was aborted ends the search."""
        self._note(outputs[0])
        for output in outputs:
            reason = output.outputs[0].finish_reason
            if reason in ("abort", "error"):
                self.cut(reason)
                return
        self._num_steps += 1
        is_last = self._num_steps == self._max_tokens
        going_on: list[_Hypothesis] = []
        for rank, candidate in enumerate(self._best_candidates(outputs)):
            is_end = candidate.token_ids[-1] in self._eos
            if not is_end and not is_last:
                going_on.append(candidate)
            elif rank < self._params.beam_width:
                score = candidate.logprob / self._num_steps**self._params.length_penalty
                reason = "stop" if is_end else "length"
                self._finished.append(replace(candidate, score=score, finish_reason=reason))
        self._finished = heapq.nlargest(self._params.beam_width, self._finished, key=_score)
        self._beams = going_on[: self._params.beam_width]
        self.is_finished = not self._beams or self._cannot_improve()

    def cut(self, reason: FinishReasonName) -> None:
        """Ends the search before its time; beams that went on end with this reason."""
        length = max(1, self._num_steps) ** self._params.length_penalty
        ended = [replace(beam, score=beam.logprob / length, finish_reason=reason) for beam in self._beams]
        self._finished = heapq.nlargest(self._params.beam_width, [*self._finished, *ended], key=_score)
        self._beams = []
        self.is_finished = True

    def output(self, tokenizer: Tokenizer, stop_reason: str | None = None) -> RequestOutput:
        """Returns the best hypotheses as the samples of one request.

        Args:
            tokenizer: makes their text.
            stop_reason: of those that ended with `length`.
        """
        samples = []
        for index, found in enumerate(self._finished[: self._params.num_returned]):
            has_logprobs = self._params.logprobs is not None
            samples.append(
                CompletionOutput(
                    index=index,
                    text=self._text(found, tokenizer),
                    token_ids=list(found.token_ids),
                    cumulative_logprob=found.logprob,
                    logprobs=[_named(entry, tokenizer) for entry in found.positions] if has_logprobs else None,
                    finish_reason=found.finish_reason,
                    stop_reason=stop_reason if found.finish_reason == "length" else None,
                )
            )
        return RequestOutput(
            request_id=self.request.request_id,
            prompt=self._processed.prompt_text,
            prompt_token_ids=self._processed.prompt_token_ids,
            outputs=samples,
            finished=True,
            metrics=self.metrics,
            num_cached_tokens=self.num_cached_tokens,
        )

    def _note(self, output: RequestOutput) -> None:
        """The first step says how the search came to run."""
        if self._num_steps == 0 and output.metrics is not None:
            self.num_cached_tokens = output.num_cached_tokens
            self.metrics.first_scheduled_s = output.metrics.first_scheduled_s

    def _best_candidates(self, outputs: Sequence[RequestOutput]) -> list[_Hypothesis]:
        """Returns the likeliest continuations of all beams, best first."""
        candidates = []
        for index, (beam, output) in enumerate(zip(self._beams, outputs, strict=True)):
            entries = output.outputs[0].logprobs or [{}]
            candidates += [
                (beam.logprob + entry.logprob, -index, -token_id, entries[0]) for token_id, entry in entries[0].items()
            ]
        best = heapq.nlargest(self._num_candidates, candidates, key=lambda candidate: candidate[:3])
        return [self._continued(-index, -token_id, logprob, entry) for logprob, index, token_id, entry in best]

    def _continued(self, index: int, token_id: int, logprob: float, entry: PositionLogprobs) -> _Hypothesis:
        beam = self._beams[index]
        positions = beam.positions
        if self._params.logprobs is not None:
            chosen_first = {token_id: entry[token_id], **entry}
            kept = {
                key: value
                for key, value in chosen_first.items()
                if key == token_id or value.rank <= self._params.logprobs
            }
            positions = (*positions, kept)
        return _Hypothesis((*beam.token_ids, token_id), logprob, positions)

    def _cannot_improve(self) -> bool:
        """Whether `early_stopping` ends the search although there are beams to go on with."""
        if len(self._finished) < self._params.beam_width:
            return False
        if self._params.early_stopping is True:
            return True
        length = self._num_steps
        if self._params.early_stopping == "never" and self._params.length_penalty > 0:
            length = self._max_tokens
        best_possible: float = self._beams[0].logprob / length**self._params.length_penalty
        return best_possible <= self._finished[-1].score

    def _text(self, found: _Hypothesis, tokenizer: Tokenizer) -> str:
        token_ids = found.token_ids
        if found.finish_reason == "stop" and not self._params.include_stop_str_in_output:
            token_ids = token_ids[:-1]
        detokenizer = tokenizer.detokenizer(
            self._processed.prompt_token_ids,
            skip_special_tokens=self._params.skip_special_tokens,
            spaces_between_special_tokens=self._params.spaces_between_special_tokens,
        )
        return detokenizer.push(token_ids) + detokenizer.flush()


def _score(hypothesis: _Hypothesis) -> float:
    return hypothesis.score


def _named(entry: PositionLogprobs, tokenizer: Tokenizer) -> PositionLogprobs:
    return {key: replace(value, decoded_token=tokenizer.token_text(key)) for key, value in entry.items()}
