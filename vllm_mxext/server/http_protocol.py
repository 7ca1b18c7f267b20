"""HTTP/1.1 as uvicorn speaks it, with a bound on headers, and with errors in the shape of every other error."""

from __future__ import annotations

from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vllm_mxext.server.errors import ErrorReply

MAX_HEAD_BYTES = 64 * 1024
"""Bytes that may come without completing a request's headers, or its next piece of body, or its trailers."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection.

    The parser gathers an unfinished header at a cost that grows with the square of its length, so it must not grow.
    """

    _num_pending_bytes = 0
    """Bytes received since the parser last completed something."""

    def data_received(self, data: bytes) -> None:
        """Parses what came; a request that goes on without getting anywhere is refused."""
        self._num_pending_bytes += len(data)
        super().data_received(data)
        if self._num_pending_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            message = f"The request's headers are larger than the {MAX_HEAD_BYTES} bytes this server takes."
            self._refuse(ErrorReply(431, message, "BadRequestError"))

    def on_headers_complete(self) -> None:
        """Goes on to the body."""
        self._num_pending_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Takes a piece of the body."""
        self._num_pending_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Waits for the next request."""
        self._num_pending_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP, and hangs up."""
        self._refuse(ErrorReply(400, msg, "BadRequestError"))

    def _refuse(self, reply: ErrorReply) -> None:
        body = reply.body()
        head = (
            f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()
