"""`OciSource`: models that are artifacts in a container registry, one layer per file."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx

from vllm_mxext.errors import ConfigError, DownloadError, HubCause, TransferError
from vllm_mxext.hub.network import Network
from vllm_mxext.hub.retrying import retrying
from vllm_mxext.hub.sources.answers import Advice, understanding
from vllm_mxext.hub.sources.http_range import open_http_range
from vllm_mxext.hub.sources.interface import Listing, Range, RemoteFile
from vllm_mxext.hub.sources.listing import digest_of
from vllm_mxext.hub.sources.requests import Access, Reply, ask, ask_json, read_all
from vllm_mxext.redaction import redact

_URI = re.compile(
    r"oci://(?P<registry>[\w.-]+(?::\d+)?)/(?P<repository>[a-z0-9._/-]+)"
    r"(?::(?P<tag>[\w.-]+))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
_PATHS = ("org.cncf.model.filepath", "org.cnai.model.filepath", "org.opencontainers.image.title")
"""Annotations that name a layer's file: those of the ModelPack specification, old and new, and that of ORAS."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class OciSource:
    """An artifact of a registry (OCI distribution specification 1.1); see `Source`.

    Every file comes with its SHA-256, and the manifest is held against its own if the URI pins one. Without
    credentials in Docker's `config.json` the registry is asked for an anonymous token.

    Args:
        uri: `oci://REGISTRY/REPOSITORY[:TAG][@DIGEST]`.
        revision: tag or digest; wins over that of the URI; None = `latest`.
        network: connections.

    Raises:
        ConfigError: the URI has another form.
    """

    def __init__(self, uri: str, revision: str | None, network: Network) -> None:
        match = _URI.fullmatch(uri)
        if match is None:
            raise ConfigError(f"'{redact(uri)}' must have the form oci://REGISTRY/REPOSITORY:TAG, or @sha256:DIGEST.")
        self.uri = uri
        self._registry, self._repository = match["registry"], match["repository"]
        self._reference = revision or match["digest"] or match["tag"] or "latest"
        self._network = network
        host = urlsplit(f"//{self._registry}").hostname or ""
        scheme = "http" if host in ("localhost", "127.0.0.1") else "https"  # as Docker does
        self._base = f"{scheme}://{_api_host(self._registry)}/v2/{self._repository}"
        self._login = _login(network.config.environ, self._registry)
        self._lock = threading.Lock()
        self._headers: Mapping[str, str] = {}
        self._is_logged_in = False
        self._advice = Advice(
            what=f"The artifact '{self._registry}/{self._repository}'",
            unauthorized=f"log in with `docker login {self._registry}` as somebody who may pull it.",
            not_found=f"check registry, repository and '{self._reference}'.",
        )

    def list_files(self) -> Listing:
        """Lists the layers that are files."""
        body = retrying(self._manifest)
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if _DIGEST.fullmatch(self._reference) and digest != self._reference:
            raise DownloadError(
                f"{self._advice.what} is not the one of {self._reference}: the registry sent another manifest; "
                "take it from "
                "another source.",
                cause=HubCause.DAMAGED,
            )
        with understanding(self._base, "the address"):
            files = [self._file(layer) for layer in self._layers(body)]
            found = tuple(sorted((file for file in files if file is not None), key=lambda file: file.path))
        if not found:
            raise DownloadError(
                f"{self._advice.what} has no layers with names of files; push it with `oras push` or as a "
                "ModelPack with raw "
                "layers.",
                cause=HubCause.NOT_FOUND,
            )
        return Listing(digest, found)

    def open_range(self, file: RemoteFile, start: int, end: int | None, validator: str | None) -> Range:
        """Asks for bytes of a layer, with a new token if the old one has expired."""
        bounds = (start, end)
        access = self._log_in_for(file.locator)
        try:
            return open_http_range(self._network, file.locator, file, bounds, validator, self._advice, access)
        except DownloadError as error:
            if error.cause is not HubCause.UNAUTHORIZED or not access.headers:
                raise
        with self._lock:
            self._is_logged_in = False
        access = self._log_in_for(file.locator)
        return open_http_range(self._network, file.locator, file, bounds, validator, self._advice, access)

    def close(self) -> None:
        """Leaves the network's connections open for others."""

    def _manifest(self) -> bytes:
        url = f"{self._base}/manifests/{self._reference}"
        accept = {"Accept": ", ".join(_MANIFESTS)}
        return read_all(ask(self._network, url, self._log_in_for(url, accept), accept), self._advice)

    def _layers(self, body: bytes) -> list[Mapping[str, Any]]:
        try:
            manifest = json.loads(body)
            layers = manifest.get("layers")
        except (ValueError, AttributeError, RecursionError):
            layers = None
        if not isinstance(layers, list):
            raise DownloadError(
                f"{self._advice.what} is no artifact with layers, but an index or something else; name one."
            )
        return layers

    def _file(self, layer: Mapping[str, Any]) -> RemoteFile | None:
        annotations, digest = layer.get("annotations") or {}, str(layer.get("digest", ""))
        path = next((annotations[name] for name in _PATHS if name in annotations), None)
        if path is None:
            return None
        kind = str(layer.get("mediaType", ""))
        if ".tar" in kind or "+gzip" in kind or "+zstd" in kind or not _DIGEST.fullmatch(digest):
            raise DownloadError(
                f"{self._advice.what} has '{path}' as {kind or digest}, which is not read; push the files as they "
                "are, with "
                "`oras push` or as raw layers."
            )
        return RemoteFile(str(path), int(layer["size"]), digest_of(digest[7:]), f"{self._base}/blobs/{digest}")

    def _log_in_for(self, url: str, headers: Mapping[str, str] | None = None) -> Access:
        """Returns the credentials for a URL: those that its registry gives when it refuses a request without any."""
        with self._lock:
            if not self._is_logged_in:
                reply = ask(self._network, url, Access(self._base), headers)
                reply.response.close()
                if reply.response.status_code == 401 and not reply.is_elsewhere:
                    self._headers = self._token(reply)
                self._is_logged_in = True
            return Access(self._base, self._headers)

    def _token(self, refused: Reply) -> Mapping[str, str]:
        challenge = refused.response.headers.get("WWW-Authenticate", "")
        kind, _, rest = challenge.partition(" ")
        if kind.lower() == "basic" and self._login:
            return {"Authorization": f"Basic {self._login}"}
        fields = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        if kind.lower() != "bearer" or "realm" not in fields:
            return {}
        realm = fields.pop("realm")
        if urlsplit(realm).scheme != "https" and urlsplit(self._base).scheme == "https":
            raise DownloadError(
                f"{self._registry} wants the password sent without encryption; it is not. Use another registry.",
                cause=HubCause.UNSAFE,
            )
        fields.setdefault("scope", f"repository:{self._repository}:pull")
        url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(fields)}"
        access = Access(realm, {"Authorization": f"Basic {self._login}"} if self._login else {})
        answer, _ = retrying(lambda: ask_json(self._network, url, self._advice, access))
        token = (answer.get("token") or answer.get("access_token")) if isinstance(answer, dict) else None
        if not isinstance(token, str):
            raise TransferError(f"{httpx.URL(realm).host} gave no token for {self._registry}; try again later.")
        return {"Authorization": f"Bearer {token}"}


def _api_host(registry: str) -> str:
    return "registry-1.docker.io" if registry in ("docker.io", "index.docker.io") else registry


def _login(environ: Mapping[str, str], registry: str) -> str | None:
    """Returns `user:password` in base64, as `docker login` keeps it; credential helpers are not asked."""
    home = environ.get("DOCKER_CONFIG") or (f"{environ['HOME']}/.docker" if environ.get("HOME") else None)
    if home is None:
        return None
    try:
        config = json.loads((Path(home) / "config.json").read_text(encoding="utf-8"))
        names = (
            registry,
            f"https://{registry}",
            "https://index.docker.io/v1/" if "docker.io" in registry else registry,
        )
        auths = config.get("auths") or {}
        text = next((auths[name]["auth"] for name in names if auths.get(name, {}).get("auth")), None)
        if text is not None:
            base64.b64decode(text, validate=True)
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    return text
