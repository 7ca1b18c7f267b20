"""`Proposer`: where draft tokens come from; `NgramProposer` looks them up in the request's own tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from vllm_mxext.config.engine import SpeculationConfig
from vllm_mxext.native.speculation.ngram import look_up
from vllm_mxext.native.worker.input_batch import InputBatch


class Proposer(Protocol):
    """Finds draft tokens for rows of the persistent batch.

    Attributes:
        is_catching_up: whether most of the time of the last `propose()` went into text that is older than the drafts.
    """

    is_catching_up: bool

    def propose(self, batch: InputBatch, num_drafts: Mapping[str, int]) -> dict[str, list[int]]:
        """Returns drafts of requests, those without any left out.

        Args:
            batch: the rows; their tokens and block tables are up to date.
            num_drafts: request id -> drafts at most. All of its tokens but the last are computed.
        """
        ...


class NgramProposer:
    """Prompt lookup.

    Args:
        config: how many tokens must repeat.
    """

    is_catching_up = False

    def __init__(self, config: SpeculationConfig) -> None:
        self._min_length = config.prompt_lookup_min
        self._max_length = config.prompt_lookup_max

    def propose(self, batch: InputBatch, num_drafts: Mapping[str, int]) -> dict[str, list[int]]:
        """See `Proposer`."""
        drafts = {}
        for request_id, limit in num_drafts.items():
            found = look_up(batch.tokens(request_id), self._min_length, self._max_length, limit)
            if found:
                drafts[request_id] = found
        return drafts
