"""Checks of variables, packages and the hardware."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from vllm_mxext.findings import Finding, ok, problem, warning
from vllm_mxext.hub.hardware import Hardware
from vllm_mxext.redaction import redact

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_OFFLINE = ("MIM_OFFLINE", "HF_HUB_OFFLINE", "VLLM_MXEXT_OFFLINE")
_ENDPOINTS = (
    "HF_ENDPOINT", "MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL",
    "S3_ENDPOINT_URL", "MINIO_ENDPOINT", "STORAGE_EMULATOR_HOST", "NGC_ENDPOINT",
)  # fmt: skip
_CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_DIR")
_PACKAGES = {"s3": ("minio", "pip install 'vllm_mxext[s3]'")}
_SIGNING = ("model_signing", "pip install 'vllm_mxext[signing]'")
_SOCKS = ("socksio", "pip install 'httpx[socks]'")


def check_variables(environ: Mapping[str, str], *, is_offline: bool, warnings: Iterable[str] = ()) -> Iterator[Finding]:
    """Tells of variables that change how sources are reached.

    Args:
        environ: the variables.
        is_offline: connections are forbidden, by whatever.
        warnings: what else is odd about them, a sentence each.
    """
    for name in _PROXIES:
        for variable in (name, name.upper()):
            if environ.get(variable):
                yield ok("proxy", f"{variable} is {redact(environ[variable])}.")
    for variable in _ENDPOINTS:
        if environ.get(variable):
            yield ok("mirror", f"{variable} is {redact(environ[variable])}.")
    for variable in _CERTIFICATES:
        path = environ.get(variable)
        if path and not Path(path).exists():
            yield problem(
                "certificates", f"{variable} names '{path}', which is not there.", f"Correct or unset {variable}."
            )
    if is_offline:
        names = [name for name in _OFFLINE if environ.get(name)]
        why = f"{names[0]} is set" if names else "--offline is given"
        yield warning("offline", f"No connection will be opened, because {why}.", "Leave it out to download models.")
    for text in warnings:
        yield warning("variables", text, "Correct its name, or unset it.")


def check_packages(
    schemes: Iterable[str],
    *,
    needs_signing: bool = False,
    uses_socks: bool = False,
    is_there: Callable[[str], object] = importlib.util.find_spec,
) -> Iterator[Finding]:
    """Checks whether packages that are not always installed are there.

    Args:
        schemes: of the sources that are used.
        needs_signing: signatures are verified.
        uses_socks: a proxy is one of SOCKS.
        is_there: package -> something true if it is installed.
    """
    wanted = [(*_PACKAGES[scheme], f"{scheme}:// sources") for scheme in sorted(set(schemes) & _PACKAGES.keys())]
    wanted += [(*_SIGNING, "signatures of models")] if needs_signing else []
    wanted += [(*_SOCKS, "a SOCKS proxy")] if uses_socks else []
    for package, command, purpose in wanted:
        if is_there(package):
            yield ok("packages", f"The package {package} is there for {purpose}.")
        else:
            yield problem("packages", f"The package {package} is missing, which {purpose} need.", f"Run: {command}")


def uses_socks(environ: Mapping[str, str]) -> bool:
    """Whether a proxy of the environment is one of SOCKS."""
    values = [environ.get(name) or environ.get(name.upper()) or "" for name in _PROXIES[:3]]
    return any(value.startswith("socks") for value in values)


def check_hardware(hardware: Hardware) -> Iterator[Finding]:
    """Tells what was found out about the machine and what could not be."""
    devices = ", ".join(device.name for device in hardware.devices) or "no accelerator"
    yield ok("hardware", f"{hardware.host.num_cores} cores and {devices}.")
    for note in hardware.notes:
        yield warning("hardware", note, "Install or repair the driver if this device is to be used.")
