"""Endpoints of sources: which server a scheme stands for, by variables of the environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from vllm_mxext.errors import ConfigError


def endpoint_of(environ: Mapping[str, str], variables: Sequence[str], default: str) -> str:
    """Returns the first variable that is set, as a URL without a slash at its end.

    Args:
        environ: the variables.
        variables: that may name an endpoint; a bare host name means https.
        default: if none is set.

    Raises:
        ConfigError: it is no http or https URL, or has a password.
    """
    for variable in variables:
        value = environ.get(variable, "").strip()
        if not value:
            continue
        url = (value if "://" in value else f"https://{value}").rstrip("/")
        split = urlsplit(url)
        if split.scheme not in ("http", "https") or not split.hostname:
            raise ConfigError(f"{variable} must be the URL of a server, as in {default or 'https://HOST'}; correct it.")
        if split.username or split.password:
            raise ConfigError(f"{variable} must not have a user or password in it; use the variables for tokens.")
        return url
    return default
