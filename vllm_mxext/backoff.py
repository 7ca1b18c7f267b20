"""How long to wait before asking again: what a server asks for in its answer, and bounds of random waits.

Waits are "full jitter" (Amazon's Builders' Library): random between 0 and a bound that doubles, added to what the
server asks for, so that those who wait for the same moment do not come back together.
"""

from __future__ import annotations

import email.utils
import math
from collections.abc import Mapping
from datetime import datetime, timezone


def bound_s(num_before: int, first_s: float, max_s: float, factor: float = 2.0) -> float:
    """Returns the longest random wait after so many waits.

    Args:
        num_before: waits before this one.
        first_s: bound of the first.
        max_s: bound of the longest.
        factor: from one bound to the next.
    """
    try:
        return min(max_s, first_s * factor**num_before)
    except OverflowError:
        return max_s


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Returns the seconds that a server asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date.

    What is malformed counts as absent, as does what is negative; a date that has passed means now.

    Args:
        headers: of the answer, lower-case names.
        now: the date of today, with its zone.
    """
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        try:
            seconds = float(text) * unit_s
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    try:
        moment = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return max(0.0, (moment - (now or datetime.now(timezone.utc))).total_seconds())
