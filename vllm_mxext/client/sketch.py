"""`Sketch`: quantiles of durations in constant memory, with a bounded error."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from itertools import accumulate
from operator import add

RELATIVE_ERROR = 0.01
"""Of a quantile between the two values below; outside of them it is the nearer one, or the least or greatest value."""

_SMALLEST_S, _LARGEST_S = 1e-4, 1e4
_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GAMMA = math.log(_GAMMA)
_NUM_BUCKETS = math.ceil(math.log(_LARGEST_S / _SMALLEST_S) / _LOG_GAMMA) + 1


class Sketch:
    """Counts values in buckets whose bounds grow by a factor: DDSketch (Masson, Rim, Lee, VLDB 2019), of fixed range.

    Takes 7.4 kB, however many values there are. Count, sum, least and greatest are exact.
    """

    __slots__ = ("_counts", "count", "maximum", "minimum", "total")

    def __init__(self) -> None:
        self._counts = array("Q", bytes(8 * _NUM_BUCKETS))
        self.count = 0
        self.total = 0.0
        self.minimum = math.inf
        self.maximum = -math.inf

    def add(self, value: float) -> None:
        """Counts a value, in seconds; what is no finite number from 0 is left out."""
        if not 0 <= value < math.inf:
            return
        clamped = min(max(value, _SMALLEST_S), _LARGEST_S)
        self._counts[math.ceil(math.log(clamped / _SMALLEST_S) / _LOG_GAMMA - 1e-9)] += 1
        self.count += 1
        self.total += value
        self.minimum = min(self.minimum, value)
        self.maximum = max(self.maximum, value)

    def merge(self, other: Sketch) -> None:
        """Adds all values of another sketch."""
        self._counts = array("Q", map(add, self._counts, other._counts))
        self.count += other.count
        self.total += other.total
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)

    def quantile(self, share: float) -> float:
        """Returns the smallest value that at least this share of all values do not exceed, within `RELATIVE_ERROR`.

        Raises:
            ValueError: there are no values.
        """
        if not self.count:
            raise ValueError("There are no values.")
        rank = max(1, math.ceil(share * self.count))
        index = bisect_left(list(accumulate(self._counts)), rank)
        middle = _SMALLEST_S * _GAMMA**index * 2 / (1 + _GAMMA)
        return min(max(middle, self.minimum), self.maximum)

    def num_up_to(self, bound: float) -> int:
        """Returns how many values do not exceed a bound, which is taken within `RELATIVE_ERROR`."""
        if bound >= _LARGEST_S:
            return self.count
        last = math.floor(math.log(max(bound, _SMALLEST_S) / _SMALLEST_S) / _LOG_GAMMA + 0.5)
        return sum(self._counts[: last + 1])
