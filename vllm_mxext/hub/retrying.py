"""`retrying()`: does again what failed for a reason that may pass by itself."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import TypeVar

from vllm_mxext.errors import TransferError
from vllm_mxext.logger import init_logger

logger = init_logger(__name__)

T = TypeVar("T")

MAX_RETRY_AFTER_S = 120.0
"""A server that wants to be left alone for longer is asked again after this."""


def retrying(
    work: Callable[[], T],
    *,
    attempts: int = 6,
    timeout_s: float = 300.0,
    first_wait_s: float = 1.0,
    max_wait_s: float = 30.0,
    told: Callable[[TransferError, float], None] | None = None,
) -> T:
    """Returns what `work` returns; after a `TransferError` it is called again, any other error is raised at once.

    Waits are random between 0 and a bound that doubles ("full jitter", as in Amazon's Builders' Library), but never
    shorter than `Retry-After`. `stamina.set_active(False)` switches it off, `stamina.set_testing(True)` the waiting.

    Args:
        work: what is done.
        attempts: calls at most.
        timeout_s: no further call after this many seconds.
        first_wait_s: bound of the first wait.
        max_wait_s: bound of the longest.
        told: hears of every failure that is followed by another attempt, and the seconds until then.

    Raises:
        TransferError: of the last attempt.
    """
    import stamina  # noqa: PLC0415 - only downloads need it

    bound = first_wait_s
    num_failures = 0

    def wait(error: Exception) -> bool | float:
        nonlocal bound, num_failures
        if not isinstance(error, TransferError):
            return False
        num_failures += 1
        wait_s = random.uniform(0, bound)
        bound = min(max_wait_s, 2 * bound)
        if error.retry_after_s is not None:
            wait_s += min(error.retry_after_s, MAX_RETRY_AFTER_S)
        if num_failures < attempts:
            logger.info("Asking again in %.1f s: %s", wait_s, error)
            if told is not None:
                told(error, wait_s)
        return wait_s

    logging.getLogger("stamina").addFilter(_is_of_others)
    return stamina.retry(on=wait, attempts=attempts, timeout=timeout_s)(_work)(work)


def _work(work: Callable[[], T]) -> T:
    return work()


def _is_of_others(record: logging.LogRecord) -> bool:
    """Tells whether a line of stamina's is not about a call of this module, which logs those itself."""
    return str(getattr(record, "stamina.callable", "")) != f"{__name__}.{_work.__name__}"
