"""Ports: whether one is free, which process listens on it, and which one a server should take."""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection

from vllm_mxext.errors import ConfigError
from vllm_mxext.registry.errors import PortTakenError

FIRST = 8000
"""The port that is tried first, and that the documentation uses."""

_TRIED = 1000


def is_free(host: str, port: int) -> bool:
    """Whether a server can listen there.

    Raises:
        ConfigError: it never can: the address is not this machine's, or the port is reserved.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else "it is not a host name"
        raise ConfigError(f"The address '{host}' of --host cannot be resolved: {reason}.") from None
    with socket.socket(family, kind, protocol) as probe:
        # As servers do: connections in TIME_WAIT do not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            if error.errno == errno.EACCES:
                raise ConfigError(
                    f"This user may not listen on port {port}; choose one above 1023 with --port."
                ) from None
            raise ConfigError(f"The address '{host}' of --host cannot be used: {error.strerror}.") from None
        return True


def owner(port: int) -> str:
    """Returns who listens on a port, in words; without the process's flags, which may contain keys."""
    import psutil  # noqa: PLC0415 - slow to import, and rarely needed

    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.Error:  # some systems only tell root
        return "another process"
    listening = [
        one for one in connections if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port
    ]
    pid = next((one.pid for one in listening if one.pid), None)
    if pid is None:
        return "a process of another user" if listening else "another process"
    try:
        process = psutil.Process(pid)
        return f"process {pid} ({process.name()}) of {process.username()}"
    except psutil.Error:
        return f"process {pid}"


def choose(host: str, preferred: int | None, avoid: Collection[int | None]) -> int:
    """Returns a free port: the preferred one, or else the first from 8000 on that is not in `avoid`.

    Raises:
        ConfigError: the address is not this machine's.
        PortTakenError: there is none.
    """
    if preferred is not None and preferred not in avoid and is_free(host, preferred):
        return preferred
    for port in range(FIRST, FIRST + _TRIED):
        if port not in avoid and is_free(host, port):
            return port
    raise PortTakenError(f"No port from {FIRST} to {FIRST + _TRIED - 1} is free; choose one with --port.")
