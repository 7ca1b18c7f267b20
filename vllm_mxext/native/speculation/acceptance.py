"""`Acceptance`: how a request's drafts have fared, and how many are worth having next."""

from __future__ import annotations

_DECAY = 0.8
"""What an older step counts for beside the one after it."""

_FIRST_PAUSE = 16
_LONGEST_PAUSE = 256
"""Steps without a draft between two attempts of a request whose drafts did not pay."""

_HOPEFUL_RATE = 0.8
"""Where not even drafts that are right so often would pay, nobody tries any."""


class Acceptance:
    """The record of one request.

    A draft can only be right if those before it are: with a rate `r`, the k-th is accepted with probability `r ** k`.
    Each is worth having as long as that is more than the step time it costs, in tokens. When not even the first one is,
    the request goes without, and tries a single one again after a while, ever more rarely.
    """

    __slots__ = ("_num_accepted", "_num_passed_over", "_num_tried", "_pause")

    def __init__(self) -> None:
        self._num_accepted = 1.0
        self._num_tried = 2.0
        self._pause = _FIRST_PAUSE
        self._num_passed_over = 0

    @property
    def rate(self) -> float:
        """Share of drafts that are right when those before them are, recent ones counting more."""
        return self._num_accepted / self._num_tried

    def num_worthwhile(self, price: float, limit: int) -> int:
        """Returns how many drafts to try in a step; called once per step.

        Args:
            price: tokens that could have been generated in the time that one more row takes.
            limit: drafts at most.
        """
        if price >= _HOPEFUL_RATE or limit == 0:
            return 0
        gain = rate = self.rate
        if gain <= price:
            self._num_passed_over += 1
            return 1 if self._num_passed_over > self._pause else 0
        num_drafts = 0
        while num_drafts < limit and gain > price:
            num_drafts += 1
            gain *= rate
        return num_drafts

    def record(self, num_drafts: int, num_accepted: int) -> None:
        """Takes in how a step's drafts fared."""
        if self._num_passed_over > self._pause:
            self._end_pause(num_accepted > 0)
            return
        self._num_passed_over = 0
        self._num_accepted = self._num_accepted * _DECAY + num_accepted
        self._num_tried = self._num_tried * _DECAY + min(num_accepted + 1, num_drafts)

    def _end_pause(self, was_right: bool) -> None:
        self._num_passed_over = 0
        if was_right:
            self._num_accepted, self._num_tried, self._pause = 1.0, 1.5, _FIRST_PAUSE
        else:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
