"""One sample of a request in the fake engine: its tokens, its text, and what of both has been handed out."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.outputs import CompletionOutput, FinishReasonName, Logprob, PositionLogprobs
from vllm_mxext.sampling_params import OutputKind, SamplingParams

FAKE_LOGPROB = -0.5


@dataclass(slots=True)
class FakeSample:
    """An output in progress.

    Attributes:
        index: which of the request's samples.
        plan: tokens still to come; after them, end-of-text.
        params: sampling parameters of the request.
        max_tokens: tokens at most.
        token_ids: tokens so far.
        text: text so far.
        finish_reason: None while running.
        stop_reason: what ended it, as in `CompletionOutput`.
    """

    index: int
    plan: list[int]
    params: SamplingParams
    max_tokens: int
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReasonName | None = None
    stop_reason: int | str | None = None
    _num_chars_taken: int = 0
    _num_tokens_taken: int = 0
    _is_end_taken: bool = False

    @property
    def has_news(self) -> bool:
        """Whether something came since the last `take_output()`."""
        has_ended = self.finish_reason is not None and not self._is_end_taken
        return has_ended or len(self.token_ids) > self._num_tokens_taken

    def append_token(self) -> None:
        """Takes the plan's next token, and ends the sample if it says so."""
        params = self.params
        token = self.plan.pop(0) if self.plan else FakeTokenizer.EOS
        self.token_ids.append(token)
        may_stop = len(self.token_ids) >= params.min_tokens
        if may_stop and token in params.stop_token_ids:
            self.finish_reason, self.stop_reason = "stop", token
        elif may_stop and token == FakeTokenizer.EOS and not params.ignore_eos:
            self.finish_reason = "stop"
        self._decode()
        if may_stop:
            self._match_stop_strings()
        if self.finish_reason is None and len(self.token_ids) >= self.max_tokens:
            self.finish_reason = "length"
            self._decode()

    def take_output(self) -> CompletionOutput:
        """Returns everything so far, or with `OutputKind.DELTA` what is new."""
        is_delta = self.params.output_kind is OutputKind.DELTA
        first_token, first_char = (self._num_tokens_taken, self._num_chars_taken) if is_delta else (0, 0)
        self._num_tokens_taken, self._num_chars_taken = len(self.token_ids), self._num_certain_chars()
        self._is_end_taken = self.finish_reason is not None
        token_ids = self.token_ids[first_token:]
        has_logprobs = self.params.logprobs is not None
        return CompletionOutput(
            self.index,
            self.text[first_char : self._num_chars_taken],
            token_ids,
            cumulative_logprob=FAKE_LOGPROB * len(self.token_ids) if has_logprobs else None,
            logprobs=[fake_logprobs(token, self.params.logprobs or 0) for token in token_ids] if has_logprobs else None,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )

    def _decode(self) -> None:
        self.text = FakeTokenizer().decode_certain(self.token_ids, is_last=self.finish_reason is not None)

    def _match_stop_strings(self) -> None:
        found = [(self.text.find(stop), stop) for stop in self.params.stop if stop in self.text]
        if found:
            start, stop = min(found)
            self.text = self.text[: start + (len(stop) if self.params.include_stop_str_in_output else 0)]
            self.finish_reason, self.stop_reason = "stop", stop

    def _num_certain_chars(self) -> int:
        """Characters that no stop string can take back."""
        if self.finish_reason is not None or not self.params.stop or self.params.include_stop_str_in_output:
            return len(self.text)
        return max(self._num_chars_taken, len(self.text) - max(map(len, self.params.stop)) + 1)


def fake_logprobs(token: int, num_logprobs: int) -> PositionLogprobs:
    """Made-up log probabilities of a token and of those after it in the vocabulary."""
    tokenizer = FakeTokenizer()
    candidates = {token: Logprob(FAKE_LOGPROB, 1, tokenizer.token_text(token))}
    for rank in range(2, num_logprobs + 1):
        other = (token + rank - 1) % FakeTokenizer.SIZE
        candidates[other] = Logprob(FAKE_LOGPROB - rank, rank, tokenizer.token_text(other))
    return candidates
