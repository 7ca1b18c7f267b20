"""Text of one sample as its tokens arrive: incremental detokenizing and stop strings."""

from __future__ import annotations

from vllm_mxext.native.protocol import EngineCoreRequest
from vllm_mxext.tokenizer.interface import Tokenizer
from vllm_mxext.tokenizer.stop_strings import StopStringMatcher


class SampleText:
    """Detokenizer and stop-string matcher of one sample.

    Args:
        request: the sample; its output starts after its prompt.
        tokenizer: the model's tokenizer.
    """

    def __init__(self, request: EngineCoreRequest, tokenizer: Tokenizer) -> None:
        params = request.params
        self._min_tokens = params.min_tokens
        self._detokenizer = tokenizer.detokenizer(
            request.prompt_token_ids,
            skip_special_tokens=params.skip_special_tokens,
            spaces_between_special_tokens=params.spaces_between_special_tokens,
        )
        self._matcher = StopStringMatcher(params.stop, include_in_output=params.include_stop_str_in_output)

    @property
    def stop(self) -> str | None:
        """The stop string that has ended the text."""
        return self._matcher.matched

    def push(self, token_id: int, num_output_tokens: int) -> str:
        """Takes the next token, the `num_output_tokens`-th, and returns the text that is now certain."""
        text = self._detokenizer.push((token_id,))
        return self._matcher.push(text, can_stop=num_output_tokens >= self._min_tokens)

    def flush(self, num_output_tokens: int) -> str:
        """Returns all text held back; call once, at the end."""
        text = self._detokenizer.flush()
        return self._matcher.push(text, can_stop=num_output_tokens >= self._min_tokens) + self._matcher.flush()
