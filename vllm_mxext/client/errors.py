"""Errors of the client: what happened, where, after how many attempts.

ClientError
├── ClosedError                the client has been closed
├── QueueFullError             the client's own queue is full
├── CircuitOpenError           every endpoint is known to fail at present
├── ConnectionFailedError      no connection, or it broke before an answer
├── TimeoutExceededError       connect, first token, idle or total
├── ProtocolError              an answer that cannot be understood
├── StatusError                an answer with an error's status
│   ├── BadRequestError        400, 413, 422
│   ├── AuthenticationError    401, 403
│   ├── NotFoundError          404
│   ├── RateLimitedError       429
│   └── ServerError            5xx
└── StreamInterruptedError     the stream broke after the first token; `text` is what had come
"""

from __future__ import annotations

from vllm_mxext.client.call import Attempt
from vllm_mxext.errors import MxError


class ClientError(MxError):
    """A call did not succeed.

    Attributes:
        status: of HTTP; None without an answer.
        request_id: of the server; empty if it gave none.
        attempts: every try.
        endpoint_id: who was asked last; empty if nobody was.
        code: the server's error code; empty if it gave none.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        request_id: str = "",
        attempts: tuple[Attempt, ...] = (),
        endpoint_id: str = "",
        code: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.request_id = request_id
        self.attempts = attempts
        self.endpoint_id = endpoint_id
        self.code = code


class ClosedError(ClientError):
    """The client has been closed."""


class QueueFullError(ClientError):
    """As many requests wait in the client as may."""


class CircuitOpenError(ClientError):
    """Every endpoint is known to fail at present; `retry_after_s` says when one is tried again.

    Attributes:
        retry_after_s: seconds until then.
    """

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ConnectionFailedError(ClientError):
    """There was no connection, or it broke before an answer."""


class TimeoutExceededError(ClientError, TimeoutError):
    """A limit of time was reached; the text says which."""


class ProtocolError(ClientError):
    """The answer cannot be understood: wrong content type, broken JSON, a stream cut off or malformed."""


class StatusError(ClientError):
    """The server answered with an error."""


class BadRequestError(StatusError):
    """The server refuses the request as it is."""


class AuthenticationError(StatusError):
    """The key is missing or wrong."""


class NotFoundError(StatusError):
    """There is no such model or path."""


class RateLimitedError(StatusError):
    """The server has too much to do: retries were used up, or the call's time ends before the pause it asks for.

    Attributes:
        retry_after_s: seconds that the server asks to wait; None if it does not say.
    """

    retry_after_s: float | None = None


class ServerError(StatusError):
    """The server failed; retries were used up."""


class StreamInterruptedError(ClientError):
    """A stream broke after its first token, so that it could not be tried again.

    Attributes:
        text: what had come.
    """

    def __init__(
        self,
        message: str,
        *,
        text: str = "",
        attempts: tuple[Attempt, ...] = (),
        endpoint_id: str = "",
        request_id: str = "",
    ) -> None:
        super().__init__(message, attempts=attempts, endpoint_id=endpoint_id, request_id=request_id)
        self.text = text


StreamInterrupted = StreamInterruptedError
"""The name in the documents."""
