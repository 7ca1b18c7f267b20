"""`Address`: where a server that is measured is."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from vllm_mxext.errors import ConfigError
from vllm_mxext.redaction import redact

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is.

    Attributes:
        host: name or number.
        port: of TCP.
        is_tls: over https.
        path: that every path begins with.
    """

    host: str
    port: int
    is_tls: bool
    path: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """Reads `http://host:port`; a path such as `/v1` at its end is left out, as every route begins with it.

        Raises:
            ConfigError: another form.
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
        # 0.0.0.0 is where a server listens; not every system can connect to it.
        host = "127.0.0.1" if parts.hostname == "0.0.0.0" else parts.hostname
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(host, port or _PORTS[parts.scheme], parts.scheme == "https", path)
