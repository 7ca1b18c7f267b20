"""Checks of sources: whether they can be reached and give what is asked for, and if not, why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

from vllm_mxext.config.hub import NetworkConfig
from vllm_mxext.errors import HubCause, HubError, MissingDependencyError, MxError
from vllm_mxext.hub.doctor.finding import Finding, ok, problem

PATIENCE_S = 10.0

Probe = Callable[[str], int]
"""URI -> number of its files."""

_REMEDIES = {
    HubCause.UNREACHABLE: "Check the network, HTTPS_PROXY and NO_PROXY; behind a firewall name a mirror, such as "
    "HF_ENDPOINT for Hugging Face.",
    HubCause.NOT_FOUND: "Check the name and --revision; a private model is not found either without a token.",
    HubCause.OFFLINE: "Leave --offline out.",
}
_TOKENS = {
    "hf": "Accept the model's terms on its page, and give a token of that account with HF_TOKEN.",
    "modelscope": "Give a token with MODELSCOPE_API_TOKEN.",
    "s3": "Give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
    "ngc": "Give a key with NGC_API_KEY.",
}


def check_source(uri: str, probe: Probe) -> Finding:
    """Asks a source what it has.

    Args:
        uri: the source.
        probe: asks it.
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
        return problem("source", f"{uri}: {error}", remedy)


def connecting_probe(network_config: NetworkConfig, revision: str | None) -> Probe:
    """Returns a probe that connects.

    Args:
        network_config: how connections are made.
        revision: of the model.
    """

    def probe(uri: str) -> int:
        from vllm_mxext.hub.network import Network  # noqa: PLC0415 - only those who connect need it
        from vllm_mxext.hub.sources.opening import open_source  # noqa: PLC0415

        with Network(network_config) as network, closing(open_source(uri, revision, network)) as source:
            return len(source.list_files().files)

    return probe


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
