"""`reason_of()`: why a connection failed in the operating system's words, which libraries replace by their own."""

from __future__ import annotations

import os
import socket
import ssl


def reason_of(error: BaseException) -> str:
    """Returns why a connection failed, such as `Connection refused`, without a full stop.

    Args:
        error: as a library raised it: anyio says `All connection attempts failed`, and why only in the cause.
    """
    words = str(error).strip().rstrip(".") or type(error).__name__
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        if isinstance(link, OSError) and link.errno and not isinstance(link, ssl.SSLError):
            words = (link.strerror or words) if isinstance(link, socket.gaierror) else os.strerror(link.errno)
        several = getattr(link, "exceptions", ())  # of an ExceptionGroup: one for each address of the host
        link = several[0] if several else link.__cause__ or link.__context__
    return words
