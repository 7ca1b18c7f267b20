"""`Proxies`: which proxy a connection goes through, by HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from vllm_mxext.errors import ConfigError

_SCHEMES = ("http://", "https://", "socks5://", "socks5h://")


class Proxies:
    """The proxies that variables name; lower case wins, as everywhere.

    Args:
        environ: the variables.

    Raises:
        ConfigError: a variable is no proxy's URL.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._by_scheme = {scheme: _read(environ, f"{scheme}_proxy") for scheme in ("http", "https", "all")}
        if "REQUEST_METHOD" in environ:  # in a CGI script HTTP_PROXY is a header of the client's (CVE-2016-5385)
            self._by_scheme["http"] = environ.get("http_proxy") or None
        self._exceptions = environ.get("no_proxy") or environ.get("NO_PROXY") or ""

    def find(self, scheme: str, host: str, port: int | None) -> str | None:
        """Returns the proxy's URL; None = a direct connection."""
        proxy = self._by_scheme.get(scheme) or self._by_scheme["all"]
        if proxy is None or self._is_exception(host, port):
            return None
        return proxy

    def _is_exception(self, host: str, port: int | None) -> bool:
        if not self._exceptions:
            return False
        if self._exceptions.strip() == "*":
            return True
        return any(
            _covers(text.strip().lower(), host.strip("[]").lower(), port) for text in self._exceptions.split(",")
        )


def _read(environ: Mapping[str, str], name: str) -> str | None:
    for variable in (name, name.upper()):
        value = environ.get(variable, "").strip()
        if not value:
            continue
        url = value if "://" in value else f"http://{value}"
        if not url.startswith(_SCHEMES):
            raise ConfigError(f"{variable} must begin with http://, https:// or socks5://; correct it or unset it.")
        return url
    return None


def _covers(exception: str, host: str, port: int | None) -> bool:
    """Tells whether an entry of NO_PROXY is about a host: its name, a domain it is in, or a network of addresses."""
    if "/" in exception:
        try:
            return ipaddress.ip_address(host) in ipaddress.ip_network(exception, strict=False)
        except ValueError:  # a name, not an address
            return False
    name, colon, number = exception.rpartition(":")
    if colon and number.isdigit() and ":" not in name:
        if port is None or int(number) != port:
            return False
        exception = name
    exception = exception.removeprefix("*").lstrip(".").strip("[]")
    return bool(exception) and (host == exception or host.endswith(f".{exception}"))
