"""`retrying()`: does again what failed for a reason that may pass by itself."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import TypeVar

from vllm_mxext.backoff import bound_s
from vllm_mxext.errors import TransferError
from vllm_mxext.logger import init_logger

logger = init_logger(__name__)

T = TypeVar("T")

MAX_RETRY_AFTER_S = 300.0
"""A server that wants to be left alone for longer is asked again after this."""

_FIRST_S = 1.0
_MAX_S = 30.0
"""Bounds of the first random wait and of the longest."""


def retrying(
    work: Callable[[], T],
    *,
    attempts: int = 6,
    timeout_s: float = 300.0,
    told: Callable[[TransferError, float], None] | None = None,
) -> T:
    """Returns what `work` returns; after a `TransferError` it is called again, any other error is raised at once.

    Waits are those of `wait_s`. `stamina.set_active(False)` switches it off, `stamina.set_testing(True)` the waiting.

    Args:
        work: what is done.
        attempts: calls at most.
        timeout_s: no further call after this many seconds.
        told: hears of every failure that is followed by another attempt, and the seconds until then.

    Raises:
        TransferError: of the last attempt.
    """
    import stamina  # noqa: PLC0415 - only downloads need it

    num_failures = 0

    def wait(error: Exception) -> bool | float:
        nonlocal num_failures
        if not isinstance(error, TransferError):
            return False
        num_failures += 1
        seconds = wait_s(num_failures, error.retry_after_s)
        if num_failures < attempts:
            logger.info("Asking again in %.1f s: %s", seconds, error)
            if told is not None:
                told(error, seconds)
        return seconds

    logging.getLogger("stamina").addFilter(_is_of_others)
    return stamina.retry(on=wait, attempts=attempts, timeout=timeout_s)(_work)(work)


def wait_s(num_failures: int, retry_after_s: float | None, jitter: Callable[[], float] = random.random) -> float:
    """Returns how long to wait after failures in a row: a random time, after the one that the server asks for.

    Args:
        num_failures: in a row, from 1.
        retry_after_s: what the server asks for; None = nothing.
        jitter: a number from 0 to 1, drawn anew each time.
    """
    return min(retry_after_s or 0.0, MAX_RETRY_AFTER_S) + jitter() * bound_s(num_failures - 1, _FIRST_S, _MAX_S)


def _work(work: Callable[[], T]) -> T:
    return work()


def _is_of_others(record: logging.LogRecord) -> bool:
    """Tells whether a line of stamina's is not about a call of this module, which logs those itself."""
    return str(getattr(record, "stamina.callable", "")) != f"{__name__}.{_work.__name__}"
