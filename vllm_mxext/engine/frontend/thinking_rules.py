"""`ThinkingRules`: what a model's marks of reasoning are as tokens, for requests that limit their reasoning."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from vllm_mxext.config.frontend import FrontendConfig
from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.native.protocol import ThinkingRule
from vllm_mxext.parsing.detection import detect_parsers
from vllm_mxext.parsing.plugins import load_plugin
from vllm_mxext.parsing.reasoning import PROMPT_END_CHARS, ReasoningFormat, prompt_opens_reasoning
from vllm_mxext.parsing.registry import AUTO
from vllm_mxext.sampling_params import SamplingParams
from vllm_mxext.tokenizer.interface import Tokenizer


def find_reasoning_format(frontend: FrontendConfig, tokenizer: Tokenizer) -> ReasoningFormat | None:
    """Returns how the model marks its reasoning; None if that is not known, or is more than texts around it.

    Raises:
        ConfigError: there is no reasoning parser of that name, or the plug-in cannot be loaded.
    """
    name = frontend.reasoning_parser
    if name == AUTO:
        name = detect_parsers(tokenizer.chat_template() or "").reasoning_parser
    return None if name is None else load_plugin(frontend.parser_plugin).reasoning_parser(name).format


class ThinkingRules:
    """Makes the rules of requests with a `thinking_token_budget`; may be used by several threads.

    Looks at the whole vocabulary once, for the tokens that can be part of a mark.

    Args:
        tokenizer: the model's tokenizer.
        vocab_size: ids that the model can write.
        reasoning: how the model marks its reasoning; None if that is not known.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, reasoning: ReasoningFormat | None) -> None:
        self._tokenizer = tokenizer
        self._num_tokens = min(vocab_size, tokenizer.vocab_size)
        self._reasoning = reasoning
        self._pieces = lru_cache(1)(self._find_pieces)

    def rule(self, params: SamplingParams, prompt_token_ids: Sequence[int]) -> ThinkingRule | None:
        """Returns the rule of a request; None if nothing limits its reasoning, or its prompt has closed it already.

        Raises:
            InvalidRequestError: nobody knows how the model marks its reasoning, or it cannot write the mark.
        """
        if params.thinking_token_budget is None:
            return None
        reasoning = self._reasoning
        if reasoning is None:
            raise _refusal("needs to know how the model marks its reasoning; name a --reasoning-parser with marks")
        text = self._tokenizer.decode(prompt_token_ids[-PROMPT_END_CHARS:], skip_special_tokens=False)
        text = text[-PROMPT_END_CHARS:]
        is_open = prompt_opens_reasoning(text, reasoning)
        if is_open is False:
            return None
        pairs = reasoning.pairs
        if is_open:
            pairs.sort(key=lambda pair: text.rfind(pair[0]), reverse=True)
        return ThinkingRule(
            starts=[start.encode() for start, _ in pairs],
            closings=[self._tokens(end) for _, end in pairs],
            ends=[end.encode() for end in (*reasoning.ends, *reasoning.stops)],
            pieces=self._pieces(reasoning),
            is_open=bool(is_open) or reasoning.is_first,
        )

    def _tokens(self, end: str) -> list[int]:
        token_ids = self._tokenizer.encode(end, add_special_tokens=False)
        written = b"".join(self._tokenizer.token_bytes(token_id) for token_id in token_ids)
        if end.encode() not in written or any(token_id >= self._num_tokens for token_id in token_ids):
            raise _refusal(f"cannot be kept by this model, which has no tokens for {end!r}")
        return token_ids

    def _find_pieces(self, reasoning: ReasoningFormat) -> dict[int, bytes]:
        marks = [mark.encode() for mark in (*reasoning.starts, *reasoning.ends, *reasoning.stops)]
        heads = tuple({mark[:length] for mark in marks for length in range(1, len(mark))})
        tails = tuple({mark[length:] for mark in marks for length in range(1, len(mark))})
        found: dict[int, bytes] = {}
        for token_id in range(self._num_tokens):
            word = self._tokenizer.token_bytes(token_id)
            is_part = word.endswith(heads) or word.startswith(tails) or any(word in one or one in word for one in marks)
            if word and (is_part or word.isspace()):
                found[token_id] = word
        return found


def _refusal(why: str) -> InvalidRequestError:
    field = "thinking_token_budget"
    return InvalidRequestError(f"{field} {why}, or leave it out.", param=field)
