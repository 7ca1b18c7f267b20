"""Log probabilities at one position as callers see them, with the tokens' texts."""

from __future__ import annotations

from vllm_mxext.native.protocol import TokenLogprobs
from vllm_mxext.outputs import Logprob, PositionLogprobs
from vllm_mxext.tokenizer.interface import Tokenizer


def position_logprobs(entry: TokenLogprobs, tokenizer: Tokenizer | None) -> PositionLogprobs:
    """Returns token id -> log probability, the chosen token first; without a tokenizer there are no texts."""
    position: PositionLogprobs = {}
    num_top = len(entry.token_ids) - 1 - len(entry.other_ranks)
    for i, (token_id, logprob) in enumerate(zip(entry.token_ids, entry.logprobs, strict=True)):
        if token_id not in position:
            text = None if tokenizer is None else tokenizer.token_text(token_id)
            rank = entry.rank if i == 0 else i if i <= num_top else entry.other_ranks[i - num_top - 1]
            position[token_id] = Logprob(logprob, rank, text)
    return position
