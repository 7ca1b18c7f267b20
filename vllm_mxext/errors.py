"""The exception tree of the project.

    MxError
    ├── ConfigError                    wrong flag, file, environment or checkpoint; nothing has started
    ├── RequestError                   this request cannot be served; others are not affected
    │   ├── InvalidRequestError
    │   │   ├── ContextLengthExceededError
    │   │   ├── UnsupportedFeatureError
    │   │   ├── AdapterError
    │   │   └── AdapterConflictError
    │   ├── ModelNotFoundError
    │   │   └── AdapterNotFoundError
    │   └── QueueFullError
    └── EngineError                    the engine could not do what it accepted
        ├── EngineNotReadyError
        ├── GenerationError
        ├── DeadlineExceededError
        └── EngineDeadError

HTTP statuses for these live only in `server/errors.py`.
"""

from __future__ import annotations


class MxError(Exception):
    """Root of every error the project raises on purpose; its text is one clear sentence that says what to do."""


class ConfigError(MxError):
    """A flag, file, environment variable or checkpoint is wrong."""


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
