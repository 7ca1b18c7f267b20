"""`Address`: the parts of a measured server's URL."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from vllm_mxext.errors import ConfigError
from vllm_mxext.redaction import redact

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """A server's URL in parts.

    Attributes:
        host: name or IP address.
        port: TCP port.
        is_tls: whether it is https.
        path: prefix of every path.
    """

    host: str
    port: int
    is_tls: bool
    path: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """Parses `http://host:port`; a trailing `/v1` is dropped, because every route begins with it.

        Raises:
            ConfigError: it has another form.
        """
        parts = urlsplit(url if "//" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in _PORTS or not parts.hostname or port == -1 or parts.query or parts.username is not None:
            raise ConfigError(
                "The server's URL must look like http://host:8000, without a user, password or query; "
                f"got '{redact(url)}'."
            )
        # A server listens on 0.0.0.0, but not every system can connect to it.
        host = "127.0.0.1" if parts.hostname == "0.0.0.0" else parts.hostname
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(host, port or _PORTS[parts.scheme], parts.scheme == "https", path)
