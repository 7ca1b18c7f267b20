"""Errors of the client, each with the endpoint, the attempts and, if there was an answer, its status.

ClientError
├── ClosedError                the client has been closed
├── QueueFullError             the client's own queue is full
├── CircuitOpenError           the circuits of all endpoints are open
├── ConnectionFailedError      no connection, or it broke before an answer
├── TimeoutExceededError       a time limit was reached: connect, first token, idle or total
├── ProtocolError              an answer that cannot be understood
├── StatusError                an answer with an error status
│   ├── BadRequestError        400, 413, 422
│   ├── AuthenticationError    401, 403
│   ├── NotFoundError          404
│   ├── RateLimitedError       429
│   └── ServerError            5xx
└── StreamInterruptedError     the stream broke after the first token; `text` is what was received
"""

from __future__ import annotations

from vllm_mxext.client.call import Attempt
from vllm_mxext.errors import MxError


class ClientError(MxError):
    """A call failed.

    Attributes:
        status: HTTP status; None without an answer.
        request_id: the server's id of the request; empty if it gave none.
        attempts: all attempts.
        endpoint_id: the endpoint that was asked last; empty if none was.
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
    """The client's queue is full."""


class CircuitOpenError(ClientError):
    """The circuits of all endpoints are open: they have failed too often recently.

    Attributes:
        retry_after_s: seconds until one of them is tried again.
    """

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ConnectionFailedError(ClientError):
    """No connection could be made, or it broke before an answer."""


class TimeoutExceededError(ClientError, TimeoutError):
    """A time limit was reached; the text says which."""


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
    """The server is overloaded: retries were used up, or it asks for a longer wait than the call's time limit allows.

    Attributes:
        retry_after_s: seconds that the server asks to wait; None if it does not say.
    """

    retry_after_s: float | None = None


class ServerError(StatusError):
    """The server failed; retries were used up."""


class StreamInterruptedError(ClientError):
    """A stream broke after its first token, when it could not be retried any more.

    Attributes:
        text: the text received until then.
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
"""The documented name."""
