"""A process that dies at its n-th change of the disk, as far as the disk can tell."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from unittest import mock

OPERATIONS = ("mkdir", "symlink", "link", "rename", "replace", "unlink", "rmdir", "utime", "fsync", "chmod")


class Crash(BaseException):
    """The process is gone; no error that anybody handles."""


@contextmanager
def crashing(at: int | None, die: Callable[[], None] | None = None) -> Iterator[None]:
    """Lets nothing reach the disk from the n-th operation on, cleaning up included.

    Args:
        at: from 1; None = never.
        die: ends the process really.
    """
    count = 0

    def guarded(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if at is not None and count >= at:
                if die is not None:
                    die()
                raise Crash
            return real(*args, **options)

        return call

    with ExitStack() as stack:
        for name in OPERATIONS:
            stack.enter_context(mock.patch.object(os, name, guarded(getattr(os, name))))
        with suppress(Crash):
            yield
