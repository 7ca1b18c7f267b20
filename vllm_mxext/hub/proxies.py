"""`Proxies`: which proxy a connection goes through, by HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.request import proxy_bypass_environment

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
        name = host if port is None else f"{host}:{port}"
        if proxy_bypass_environment(name, {"no": self._exceptions}):
            return True
        try:
            address = ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            return False
        return any(address in network for network in _networks(self._exceptions))


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


def _networks(exceptions: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    networks = []
    for text in exceptions.split(","):
        if "/" in text:
            try:
                networks.append(ipaddress.ip_network(text.strip(), strict=False))
            except ValueError:  # a name with a slash means nothing here, as for other programs
                continue
    return networks
