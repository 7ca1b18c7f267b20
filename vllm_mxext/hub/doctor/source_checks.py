"""Checks of sources: whether they can be reached and give what is asked for, and if not, why."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from vllm_mxext.config.hub import NetworkConfig
from vllm_mxext.errors import HubCause, HubError, MissingDependencyError, MxError
from vllm_mxext.findings import Finding, ok, problem

if TYPE_CHECKING:  # it imports what only downloads need
    from vllm_mxext.hub.sources.interface import RemoteFile

PATIENCE_S = 10.0

Probe = Callable[[str], int]
"""URI -> number of its files."""

_PROXY_VARIABLES = ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
_WEIGHTS = (".safetensors", ".gguf", ".bin")

_REMEDIES = {
    HubCause.NOT_FOUND: "Check the name and --revision; a private model is not found either without a token.",
    HubCause.OFFLINE: "Leave --offline out.",
}
_CONNECTION_REMEDIES: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((ssl.SSLError,), "Its certificate is not trusted: name the file of your authority's with SSL_CERT_FILE."),
    ((socket.gaierror,), "The server's name is not known here: check its spelling and this machine's DNS."),
    ((TimeoutError,), "A firewall may be in between: name a proxy with HTTPS_PROXY, or a mirror such as HF_ENDPOINT."),
    ((), "Check the network, or name a mirror, such as HF_ENDPOINT for Hugging Face."),
)
_PROXY_REMEDY = " Unless NO_PROXY has the server, connections go through the proxy of {variable}: check it."

_TOKENS = {
    "hf": "Accept the model's terms on its page, and give a token of that account with HF_TOKEN.",
    "modelscope": "Give a token with MODELSCOPE_API_TOKEN.",
    "s3": "Give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
    "ngc": "Give a key with NGC_API_KEY.",
}


def check_source(uri: str, probe: Probe, environ: Mapping[str, str]) -> Finding:
    """Asks a source what it has.

    Args:
        uri: the source.
        probe: asks it.
        environ: variables that name proxies.
    """
    try:
        return ok("source", f"{uri} answers and lists {probe(uri)} files.")
    except MissingDependencyError as error:
        return problem("source", f"{uri} cannot be used.", str(error))
    except MxError as error:
        cause = error.cause if isinstance(error, HubError) else HubCause.FAILED
        scheme = uri.partition("://")[0]
        remedy = _REMEDIES.get(cause, "Correct the source in the manifest, or name another one.")
        if cause is HubCause.UNAUTHORIZED:
            remedy = _TOKENS.get(scheme, "Give the token or password that the source wants.")
        if cause is HubCause.UNREACHABLE:
            remedy = _connection_remedy(error, environ)
        return problem("source", f"{uri}: {error}", remedy)


def _connection_remedy(error: BaseException, environ: Mapping[str, str]) -> str:
    """Says what to do about a connection that was not made, by what the operating system said."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    remedy = next(
        text for kinds, text in _CONNECTION_REMEDIES if not kinds or any(isinstance(one, kinds) for one in chain)
    )
    variable = next((name for name in _PROXY_VARIABLES if environ.get(name)), None)
    if variable is None or "*" in (environ.get("no_proxy"), environ.get("NO_PROXY")):
        return remedy
    return remedy + _PROXY_REMEDY.format(variable=variable)


def connecting_probe(network_config: NetworkConfig, revision: str | None) -> Probe:
    """Returns a probe that connects: it asks for the list of files, and for a byte of one.

    Args:
        network_config: how connections are made.
        revision: of the model.
    """

    def probe(uri: str) -> int:
        from vllm_mxext.hub.network import Network  # noqa: PLC0415 - only those who connect need it
        from vllm_mxext.hub.sources.opening import open_source  # noqa: PLC0415

        with Network(network_config) as network, closing(open_source(uri, revision, network)) as source:
            files = source.list_files().files
            if files:  # a hub lists what it gives only to those who have accepted a license
                with source.open_range(_most_guarded(files), 0, 1, None):
                    pass
            return len(files)

    return probe


def _most_guarded(files: Sequence[RemoteFile]) -> RemoteFile:
    """Returns a file of weights, if there is one: others may be open to everybody, and on another server."""
    return next((file for file in files if file.path.endswith(_WEIGHTS)), files[0])


def impatient(config: NetworkConfig) -> NetworkConfig:
    """Returns settings with which a source that says nothing is given up soon."""
    return replace(config, stall_s=min(PATIENCE_S, config.stall_s or PATIENCE_S))


@contextmanager
def asking_once() -> Iterator[None]:
    """Does not ask a second time what fails."""
    import stamina  # noqa: PLC0415 - only those who connect need it

    was_active = stamina.is_active()
    stamina.set_active(False)
    try:
        yield
    finally:
        stamina.set_active(was_active)
