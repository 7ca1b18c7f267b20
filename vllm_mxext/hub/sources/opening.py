"""`open_source()`: the source that a model's URI stands for, by its scheme."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import re
from collections.abc import Callable, Sequence

from vllm_mxext.errors import ConfigError
from vllm_mxext.hub.network import Network
from vllm_mxext.hub.sources.interface import RemoteFile, Source
from vllm_mxext.redaction import redact

Opener = Callable[[str, "str | None", Network], Source]
"""URI, revision and network -> the source."""

PLUGIN_GROUP = "vllm_mxext.hub_sources"
"""Entry points of other packages: the name is a scheme, the object an `Opener`."""

_BUILT_IN = {
    "hf": "hugging_face:HuggingFaceSource",
    "modelscope": "modelscope:ModelScopeSource",
    "s3": "s3:S3Source",
    "gs": "google_storage:GoogleStorageSource",
    "https": "web:WebSource",
    "http": "web:WebSource",
    "file": "files:FileSource",
    "oci": "oci:OciSource",
    "ngc": "ngc:NgcSource",
}
"""Scheme -> module in this package and class; imported when asked for, since each needs other packages."""

_PATH = re.compile(r"[./~]|[A-Za-z]:[\\/]")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@.+)?")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


def open_source(uri: str, revision: str | None, network: Network, files: Sequence[RemoteFile] = ()) -> Source:
    """Returns the source that a URI stands for; asks nobody yet.

    `ORG/NAME` is a model of Hugging Face, or of ModelScope if the settings say so; what begins like a path is a folder.

    Args:
        uri: where the model is.
        revision: of it; wins over one in the URI; None = that of the URI or the source's usual one.
        network: connections.
        files: that a manifest says are there; only web servers, which cannot list, look at them.

    Raises:
        ConfigError: the scheme is not known, or the URI has not its form.
    """
    scheme = scheme_of(uri, uses_modelscope=network.config.uses_modelscope)
    opener = _find(scheme)
    if opener is None:
        known = schemes()
        close = difflib.get_close_matches(scheme, known, 1)
        hint = f"did you mean {close[0]}://?" if close else f"there are {', '.join(f'{name}://' for name in known)}."
        raise ConfigError(f"'{redact(uri)}' has the unknown scheme '{scheme}'; {hint}")
    if files and scheme in ("http", "https"):
        from vllm_mxext.hub.sources.web import WebSource  # noqa: PLC0415 - imports httpx

        return WebSource(uri, revision, network, files)
    return opener(uri, revision, network)


def schemes() -> tuple[str, ...]:
    """Returns the known schemes, those of plug-ins included."""
    return tuple(sorted({*_BUILT_IN, *(entry.name for entry in _plugins())}))


def scheme_of(uri: str, *, uses_modelscope: bool = False) -> str:
    """Returns the scheme of a URI, or the one that a path or a bare `ORG/NAME` stands for.

    Raises:
        ConfigError: it is none of these.
    """
    if _PATH.match(uri):
        return "file"
    match = _SCHEME.match(uri)
    if match:
        return match[1].lower()
    if _HUB_NAME.fullmatch(uri):
        return "modelscope" if uses_modelscope else "hf"
    raise ConfigError(
        f"'{redact(uri)}' is no address of a model; write ORG/NAME, a path that begins with / or ./, or one of "
        f"{', '.join(f'{name}://' for name in schemes())}."
    )


def _find(scheme: str) -> Opener | None:
    if scheme in _BUILT_IN:
        module, _, name = _BUILT_IN[scheme].partition(":")
        opener: Opener = getattr(importlib.import_module(f"{__package__}.{module}"), name)
        return opener
    for entry in _plugins():
        if entry.name == scheme:
            loaded: Opener = entry.load()
            return loaded
    return None


def _plugins() -> list[importlib.metadata.EntryPoint]:
    return list(importlib.metadata.entry_points(group=PLUGIN_GROUP))
