"""Opens the socket and checks the certificate, before anything expensive begins."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
from pathlib import Path

from vllm_mxext.config.server import ServerConfig, TlsConfig
from vllm_mxext.errors import ConfigError

_BACKLOG = 2048
"""Connections that wait to be accepted; uvicorn's default."""


def open_socket(config: ServerConfig) -> socket.socket:
    """Returns a socket that listens: of two servers that only bind a port, both succeed, and one fails much later.

    Whoever connects before something accepts waits for it.

    Raises:
        ConfigError: address, port or path cannot be used.
    """
    return _open_unix(config.uds) if config.uds is not None else _open_tcp(config.host, config.port)


def describe_socket(sock: socket.socket, *, is_tls: bool) -> str:
    """Returns where clients find the server."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if sock.family == socket.AF_INET6 else name[0]
    return f"{'https' if is_tls else 'http'}://{host}:{name[1]}"


def _open_tcp(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:  # the latter of names that are none
        reason = getattr(error, "strerror", None) or "it is no name of a host, or too long for one"
        raise ConfigError(f"The address '{host}' of --host cannot be resolved: {reason}.") from None
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError(_explain_bind(error, host, port)) from None
    return sock


def _explain_bind(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} of {host} is in use by another process; choose another one with --port."
    if error.errno == errno.EACCES:
        return f"This user may not listen on port {port}; choose one above 1023 with --port."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"The address {host} of --host does not belong to this machine."
    return f"Cannot listen on {host}, port {port}: {error.strerror}."


def _open_unix(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and not _is_answered(path):
            path.unlink()  # left behind by a server that was killed
        sock.bind(os.fspath(path))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        reason = "another server listens there" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise ConfigError(f"Cannot listen on the socket '{path}' of --uds: {reason}.") from None
    return sock


def _is_answered(path: Path) -> bool:
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        return probe.connect_ex(os.fspath(path)) == 0


def check_tls(tls: TlsConfig) -> None:
    """Loads the certificate once, to learn now whether it can be used.

    Raises:
        ConfigError: a file cannot be read, or key and certificate do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls.certfile, tls.keyfile, password="")  # an empty password never asks the terminal
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        named = f"'{tls.certfile}'" + (f" with key '{tls.keyfile}'" if tls.keyfile is not None else "")
        raise ConfigError(f"The TLS certificate {named} cannot be used: {_reason(error)}.") from None
    if tls.ca_certs is not None:
        try:
            context.load_verify_locations(tls.ca_certs)
        except (OSError, ValueError) as error:
            raise ConfigError(f"The CA file '{tls.ca_certs}' cannot be used: {_reason(error)}.") from None


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        if error.reason is None or error.reason == "PEM_LIB":
            return "it does not hold a certificate and its unencrypted key in PEM form"
        return error.reason.lower().replace("_", " ")
    return getattr(error, "strerror", None) or str(error)
