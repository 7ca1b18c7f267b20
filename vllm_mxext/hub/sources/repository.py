"""`Repository`: the address of a model at a hub, `ORG/NAME[@REVISION][/FOLDER]`."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote

from vllm_mxext.errors import ConfigError
from vllm_mxext.redaction import redact

_ADDRESS = re.compile(
    r"(?P<name>\w[\w.-]*/\w[\w.-]*|\w[\w.-]*(?=@|$))"
    r"(?:[@:](?P<revision>refs/(?:pr|convert)/[^/@]+|[^/@]+))?(?:/(?P<folder>[^/].*?))?/?"
)


class Repository(NamedTuple):
    """Where a model is at its hub.

    Attributes:
        name: ORG/NAME; the oldest models of Hugging Face have no ORG.
        revision: that is asked for; empty = the usual one.
        folder: of the model in the repository, with a slash at its end; empty = all of it is the model.
    """

    name: str
    revision: str
    folder: str

    @classmethod
    def parse(cls, scheme: str, uri: str, revision: str | None, *, needs_org: bool = False) -> Repository:
        """Reads `SCHEME://ORG/NAME[@REVISION][/FOLDER]`, or the same without a scheme; NVIDIA NIM writes `:REVISION`.

        Args:
            scheme: of the hub.
            uri: the address.
            revision: wins over that of the address.
            needs_org: a name alone is none.

        Raises:
            ConfigError: another form.
        """
        match = _ADDRESS.fullmatch(uri.removeprefix(f"{scheme}://"))
        if match is None or (needs_org and "/" not in match["name"]):
            raise ConfigError(f"'{redact(uri)}' must have the form {scheme}://ORG/NAME[@REVISION][/FOLDER].")
        folder = f"{match['folder']}/" if match["folder"] else ""
        return cls(match["name"], revision or unquote(match["revision"] or ""), folder)
