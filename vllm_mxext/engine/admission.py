"""Admission: how many requests may wait, and when a refused client should come again."""

from __future__ import annotations

from collections import deque

from vllm_mxext.config.frontend import AdmissionConfig
from vllm_mxext.errors import InvalidRequestError, QueueFullError

_NUM_REMEMBERED_ENDS = 64
_MIN_RETRY_S = 1.0
_MAX_RETRY_S = 60.0


class Admission:
    """Bounds the queue; each sample of a request counts as one.

    Samples beyond `max_num_seqs` count as waiting, whether or not memory lets that many run: the bound is on what is
    open, so it does not depend on what the core has reported yet.

    Args:
        limits: of the queue.
        max_num_seqs: samples that run at once.
    """

    def __init__(self, limits: AdmissionConfig, max_num_seqs: int) -> None:
        self._limits = limits
        self._max_num_seqs = max_num_seqs
        self._ends_s: deque[float] = deque(maxlen=_NUM_REMEMBERED_ENDS)

    def check_samples(self, num_new: int, num_open: int, now_s: float) -> None:
        """Refuses samples for which the queue has no place.

        Raises:
            InvalidRequestError: there would be no place in an empty queue either.
            QueueFullError: with the time after which a place should be free.
        """
        limit = self._limits.max_num_queued_reqs
        if limit is None:
            return
        capacity = self._max_num_seqs + limit
        if num_new > capacity:
            raise InvalidRequestError(f"n must be at most {capacity} on this server, got {num_new}.", param="n")
        num_excess = num_open + num_new - capacity
        if num_excess > 0:
            raise QueueFullError(
                f"The queue is full: {max(0, num_open - self._max_num_seqs)} requests are waiting, {limit} may; "
                "try again later.",
                retry_after_s=self._time_for(num_excess, now_s),
            )

    def check_tokens(self, num_new: int, num_queued: int, now_s: float) -> None:
        """Refuses a prompt for which the queue has no place.

        Args:
            num_new: its tokens.
            num_queued: prompt tokens of the requests that have not begun.
            now_s: monotonic time.

        Raises:
            QueueFullError: with the time after which a place should be free.
        """
        limit = self._limits.max_num_queued_tokens
        if limit is not None and num_queued and num_queued + num_new > limit:
            raise QueueFullError(
                f"The queue is full: prompts of {num_queued} tokens are waiting, {limit} may; try again later.",
                retry_after_s=self._time_for(1, now_s),
            )

    def has_token_limit(self) -> bool:
        """Whether `check_tokens()` can refuse anything."""
        return self._limits.max_num_queued_tokens is not None

    def record_end(self, now_s: float) -> None:
        """Notes that a request has ended, for the estimate of the waiting time."""
        self._ends_s.append(now_s)

    def _time_for(self, num_ends: int, now_s: float) -> float:
        """Seconds until so many requests have ended, at the rate of the recent past."""
        if len(self._ends_s) < 2:
            return _MIN_RETRY_S
        seconds_per_end = (now_s - self._ends_s[0]) / len(self._ends_s)
        return min(max(_MIN_RETRY_S, num_ends * seconds_per_end), _MAX_RETRY_S)
