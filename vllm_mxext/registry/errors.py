"""Errors of the registry, and the exit codes of `mxext server` for them."""

from __future__ import annotations

from typing import ClassVar

from vllm_mxext.errors import MxError

DONE = 0
FAILED = 1
USAGE = 2
NOT_RUNNING = 3
WRONG_NAME = 4
UNAVAILABLE = 5
INTERRUPTED = 130

MEANINGS = (
    (DONE, "done"),
    (FAILED, "failed"),
    (USAGE, "wrong usage"),
    (NOT_RUNNING, "not running, not ready yet or not reachable"),
    (WRONG_NAME, "the name is unknown, or already taken"),
    (UNAVAILABLE, "the backend cannot be started here: something is not installed or not supported"),
    (INTERRUPTED, "interrupted"),
)
"""Every exit code and its meaning, for help and manuals."""


class RegistryError(MxError):
    """A registered server, or the registry itself, cannot do what was asked.

    Attributes:
        exit_code: the command's.
        cause: what went wrong, in one or two words for programs.
    """

    exit_code: ClassVar[int] = FAILED
    cause: ClassVar[str] = "failed"


class BookError(RegistryError):
    """The registry's file cannot be read or written; it was left as it is."""

    cause = "registry file"


class PortTakenError(RegistryError):
    """Another process listens on the port."""

    cause = "port in use"


class NotRunningError(RegistryError):
    """The server does not run, is not ready yet, or cannot be reached."""

    exit_code = NOT_RUNNING
    cause = "not running"


class UnknownServerError(RegistryError):
    """No server is registered under the name."""

    exit_code = WRONG_NAME
    cause = "unknown name"


class NameTakenError(RegistryError):
    """A server is registered under the name already."""

    exit_code = WRONG_NAME
    cause = "name taken"


class BackendMissingError(RegistryError):
    """The backend is not installed, or this version does not start it."""

    exit_code = UNAVAILABLE
    cause = "backend"


class StartFailedError(RegistryError):
    """A server ended before it was ready.

    Attributes:
        log_tail: the last lines of its log.
        hint: what to do about it, or an empty text.
    """

    cause = "start failed"

    def __init__(self, message: str, *, log_tail: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message)
        self.log_tail = log_tail
        self.hint = hint
