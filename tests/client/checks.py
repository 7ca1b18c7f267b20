"""What a check of the unified test runner is: a name and a function that returns figures or says what is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

STATUSES = PASSED, FAILED, SKIPPED, INTERRUPTED = "passed", "failed", "skipped", "interrupted"


@dataclass(frozen=True, slots=True)
class Target:
    """The server under test.

    Attributes:
        url: of it.
        model: asked for; `default` = whichever it serves.
        timeout_s: of each call.
    """

    url: str
    model: str = "default"
    timeout_s: float = 30.0


Check = Callable[[Target], dict[str, Any]]
"""Returns figures; raises if what it looks at is wrong."""


class CheckFailedError(Exception):
    """What was looked at is wrong."""


class CheckSkippedError(Exception):
    """It cannot be looked at here; the text says why."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """How a check went.

    Attributes:
        name: of it.
        status: `passed`, `failed` or `skipped`.
        duration_s: how long it took.
        figures: what it measured.
        problem: why it failed or was skipped.
    """

    name: str
    status: str
    duration_s: float
    figures: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def expect(condition: object, words: str) -> None:
    """Fails the check unless the condition holds, with optimized bytecode too."""
    if not condition:
        raise CheckFailedError(words)


def run_checks(checks: Iterable[Check], target: Target, on_result: Callable[[CheckResult], None]) -> list[CheckResult]:
    """Runs checks one after the other; none keeps the next from running, but Ctrl-C does."""
    results = []
    for check in checks:
        began_s = time.monotonic()
        status, figures, problem = PASSED, {}, ""
        try:
            figures = check(target)
        except CheckSkippedError as reason:
            status, problem = SKIPPED, str(reason)
        except KeyboardInterrupt:
            status, problem = INTERRUPTED, "stopped by Ctrl-C"
        except Exception as error:  # whatever it is, the check has failed
            status, problem = FAILED, f"{type(error).__name__}: {error}"
        results.append(CheckResult(check.__name__, status, time.monotonic() - began_s, figures, problem))
        on_result(results[-1])
        if status == INTERRUPTED:
            break
    return results
