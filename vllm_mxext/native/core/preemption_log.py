"""`PreemptionLog`: says that requests are preempted, ever more rarely."""

from __future__ import annotations

import logging

from vllm_mxext.logger import init_logger
from vllm_mxext.native.core.request import Request

logger = init_logger(__name__)


class PreemptionLog:
    """Warns of every preemption whose number is a power of two."""

    def __init__(self) -> None:
        self._num_preempted = 0

    def add(self, request: Request) -> None:
        """Takes a request that is about to lose its blocks."""
        self._num_preempted += 1
        is_warning = self._num_preempted & (self._num_preempted - 1) == 0
        logger.log(
            logging.WARNING if is_warning else logging.DEBUG,
            "Request %s is preempted because KV blocks ran out; up to %d tokens are computed again. "
            "Preemptions so far: %d; a larger KV cache or a smaller max_num_seqs avoids them.",
            request.request_id,
            request.num_computed_tokens,
            self._num_preempted,
        )
