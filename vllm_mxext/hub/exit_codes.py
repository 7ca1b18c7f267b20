"""Exit codes of the hub's commands, by what went wrong, in one place."""

from __future__ import annotations

from vllm_mxext.errors import ConfigError, HubCause, HubError, ManifestError, MissingDependencyError

DONE = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130

_BY_CAUSE = {
    HubCause.FAILED: FAILED,
    HubCause.UNREACHABLE: 3,
    HubCause.UNAUTHORIZED: 4,
    HubCause.NOT_FOUND: 5,
    HubCause.DAMAGED: 6,
    HubCause.UNSAFE: 6,
    HubCause.NO_PROFILE: 7,
    HubCause.NO_SPACE: 8,
    HubCause.NO_PERMISSION: 8,
    HubCause.OFFLINE: 9,
    HubCause.NOT_LOCKED: 9,
    HubCause.INTERRUPTED: INTERRUPTED,
}

MEANINGS = (
    (DONE, "done"),
    (FAILED, "failed"),
    (USAGE, "wrong usage or manifest"),
    (3, "source unreachable"),
    (4, "not allowed: a token is missing or wrong"),
    (5, "not found"),
    (6, "damaged or unsafe files"),
    (7, "no profile can run here"),
    (8, "no space or no permission"),
    (9, "offline, or not pinned by model.lock"),
    (INTERRUPTED, "interrupted"),
)
"""Every code with what it means, for help and manuals."""


def code_of(cause: HubCause) -> int:
    """Returns the code for a cause."""
    return _BY_CAUSE[cause]


def exit_code(error: BaseException) -> int:
    """Returns the code that a command ends with after an error."""
    if isinstance(error, HubError):
        return code_of(error.cause)
    if isinstance(error, ConfigError):
        return USAGE
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED


def cause_name(error: BaseException) -> str:
    """Returns what went wrong, in a word or two for programs."""
    if isinstance(error, HubError):
        return str(error.cause.value)
    if isinstance(error, ManifestError):
        return "manifest"
    if isinstance(error, MissingDependencyError):
        return "missing package"
    if isinstance(error, ConfigError):
        return "usage"
    cause = HubCause.INTERRUPTED if isinstance(error, KeyboardInterrupt) else HubCause.FAILED
    return cause.value
