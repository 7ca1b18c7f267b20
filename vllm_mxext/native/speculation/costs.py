"""`RowCosts`: what one more row costs a step, learned from the steps themselves."""

from __future__ import annotations

_DECAY = 0.98
"""What an older step counts for beside the one after it."""

_FIRST_SHARE = 0.1
"""Part of a step with one row that another row is thought to add before anything is known."""

_LEAST_SHARE = 0.01
_EVIDENCE = 1.0
"""Squared rows that the first guess counts for."""

_NUM_TRUSTED = 8.0
_LARGEST_SURPRISE = 2.0
"""Once so many steps are known, one that took more than so many times what was expected counts for no more."""


class RowCosts:
    """A line through the seconds of recent decode steps over their numbers of rows, pulled to a first guess.

    Weights are read once per step however many rows there are, so a few more rows cost little; with many rows, every
    further one costs its share.
    """

    __slots__ = ("_rows", "_rows_rows", "_rows_seconds", "_seconds", "_weight")

    def __init__(self) -> None:
        self._weight = self._rows = self._rows_rows = self._seconds = self._rows_seconds = 0.0

    def record(self, num_rows: int, seconds: float) -> None:
        """Takes in a step that did nothing but decode."""
        if self._weight > _NUM_TRUSTED:
            start, slope = self._line()
            seconds = min(seconds, _LARGEST_SURPRISE * (start + slope * num_rows))
        self._weight = self._weight * _DECAY + 1.0
        self._rows = self._rows * _DECAY + num_rows
        self._rows_rows = self._rows_rows * _DECAY + num_rows * num_rows
        self._seconds = self._seconds * _DECAY + seconds
        self._rows_seconds = self._rows_seconds * _DECAY + num_rows * seconds

    def price(self, num_rows: int) -> float:
        """Returns the tokens that a step of so many rows, a token each, generates in the time one more row takes."""
        if self._seconds <= 0.0:
            start, slope = 1.0 - _FIRST_SHARE, _FIRST_SHARE
        else:
            start, slope = self._line()
        share = slope / max(start + slope * num_rows, slope)
        return num_rows * max(share, _LEAST_SHARE)

    def _line(self) -> tuple[float, float]:
        """Seconds without any row, and per row."""
        mean_rows, mean_seconds = self._rows / self._weight, self._seconds / self._weight
        guess = _FIRST_SHARE * mean_seconds / (1.0 - _FIRST_SHARE + _FIRST_SHARE * mean_rows)
        variance = self._rows_rows - self._rows * mean_rows
        covariance = self._rows_seconds - self._seconds * mean_rows
        slope = max(0.0, (covariance + _EVIDENCE * guess) / (variance + _EVIDENCE))
        return max(0.0, mean_seconds - slope * mean_rows), slope
