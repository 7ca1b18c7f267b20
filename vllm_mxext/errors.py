"""The exception tree of the project.

    MxError
    ├── ConfigError                    wrong flag, file, environment or checkpoint; nothing has started
    │   ├── MissingDependencyError
    │   └── ManifestError
    ├── RequestError                   this request cannot be served; others are not affected
    │   ├── InvalidRequestError
    │   │   ├── ContextLengthExceededError
    │   │   ├── UnsupportedFeatureError
    │   │   ├── AdapterError
    │   │   └── AdapterConflictError
    │   ├── ModelNotFoundError
    │   │   └── AdapterNotFoundError
    │   └── QueueFullError
    ├── EngineError                    the engine could not do what it accepted
    │   ├── EngineNotReadyError
    │   ├── GenerationError
    │   ├── DeadlineExceededError
    │   └── EngineDeadError
    └── HubError                       a model's files cannot be had, or none of its profiles can run
        ├── DownloadError
        │   └── TransferError
        ├── ChecksumError
        ├── StoreError
        ├── UnsafeFileError
        └── NoCompatibleProfileError

HTTP statuses for these live only in `server/errors.py`.
"""

from __future__ import annotations

from enum import Enum


class MxError(Exception):
    """Root of every error the project raises on purpose; its text is one clear sentence that says what to do."""


class ConfigError(MxError):
    """A flag, file, environment variable or checkpoint is wrong."""


class MissingDependencyError(ConfigError):
    """An optional package is needed; the text has the command that installs it."""


class ManifestError(ConfigError):
    """A manifest is wrong; the text begins with `file:line: `."""


class RequestError(MxError):
    """This request cannot be served; nothing else is affected.

    Attributes:
        param: name of the offending request field, if one is to blame.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidRequestError(RequestError, ValueError):
    """A field's value is missing, malformed or out of range; a `ValueError`, as in vLLM."""


class ContextLengthExceededError(InvalidRequestError):
    """The prompt, or prompt plus `max_tokens`, is longer than the model's context."""


class UnsupportedFeatureError(InvalidRequestError):
    """A known feature that this server, model or backend does not offer."""


class ModelNotFoundError(RequestError):
    """The named model is not served here."""


class AdapterError(InvalidRequestError):
    """An adapter's files are missing or broken, or do not fit the model or the limits."""


class AdapterConflictError(InvalidRequestError):
    """The name of an adapter is taken."""


class AdapterNotFoundError(ModelNotFoundError):
    """No adapter of this name is loaded."""


class QueueFullError(RequestError):
    """The bounded request queue is full.

    Attributes:
        retry_after_s: when a retry is likely to be admitted, in seconds.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineError(MxError):
    """The engine could not do what it had accepted."""


class EngineNotReadyError(EngineError):
    """The model is still loading, or the server is draining."""


class GenerationError(EngineError):
    """One request failed inside the engine; others go on."""


class DeadlineExceededError(EngineError):
    """The time that a request was given ended before there was any output."""


class EngineDeadError(EngineError):
    """The engine process is gone and could not be brought back."""


class HubCause(str, Enum):
    """Why a model's files cannot be had, for exit codes and those who react to it."""

    FAILED = "failed"
    UNREACHABLE = "unreachable"
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not found"
    OFFLINE = "offline"
    DAMAGED = "damaged"
    UNSAFE = "unsafe"
    NO_SPACE = "no space"
    NO_PERMISSION = "no permission"
    NO_PROFILE = "no profile"
    NOT_LOCKED = "not locked"
    INTERRUPTED = "interrupted"


class HubError(MxError):
    """A model's files cannot be had, or none of its profiles can run.

    Attributes:
        cause: what kind of trouble it is.
    """

    def __init__(self, message: str, *, cause: HubCause = HubCause.FAILED) -> None:
        super().__init__(message)
        self.cause = cause


class DownloadError(HubError):
    """A source does not give what was asked for, and asking again will not help."""


class TransferError(DownloadError):
    """A connection broke, stalled or was refused for now; asking again may help.

    Attributes:
        retry_after_s: when the server wants to be asked again; None if it does not say.
    """

    def __init__(
        self, message: str, *, cause: HubCause = HubCause.UNREACHABLE, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, cause=cause)
        self.retry_after_s = retry_after_s


class ChecksumError(HubError):
    """Bytes are not those that a digest promises."""

    def __init__(self, message: str) -> None:
        super().__init__(message, cause=HubCause.DAMAGED)


class StoreError(HubError):
    """The folder of models cannot be read or written: no space, no permission, or what is there is not a store."""


class UnsafeFileError(HubError):
    """A path leaves its folder, or a file may run code and that is not allowed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, cause=HubCause.UNSAFE)


class NoCompatibleProfileError(HubError):
    """No profile of the model can run on this machine, or the one that was asked for cannot."""

    def __init__(self, message: str) -> None:
        super().__init__(message, cause=HubCause.NO_PROFILE)
