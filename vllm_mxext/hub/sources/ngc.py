"""`NgcSource`: models of NVIDIA's NGC catalogue, by its public interface."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

from vllm_mxext.errors import ConfigError, DownloadError, HubCause
from vllm_mxext.hub.network import Network
from vllm_mxext.hub.retrying import retrying
from vllm_mxext.hub.sources.answers import Advice, understanding
from vllm_mxext.hub.sources.endpoints import endpoint_of
from vllm_mxext.hub.sources.http_range import open_http_range
from vllm_mxext.hub.sources.interface import Listing, Range, RemoteFile
from vllm_mxext.hub.sources.listing import make_listing, named_revision
from vllm_mxext.hub.sources.requests import Access, ask_json
from vllm_mxext.redaction import redact, shown

_URI = re.compile(r"ngc://(?P<org>[\w.-]+)/(?:(?P<team>[\w.-]+)/)?(?P<name>[\w.-]+)(?::(?P<version>[\w.+-]+))?/?")
_PAGE_SIZE = 100
_KEYS = ("NGC_API_KEY", "NGC_CLI_API_KEY")


class NgcSource:
    """One version of a model of the catalogue; see `Source`.

    Args:
        uri: `ngc://ORG/[TEAM/]NAME:VERSION`.
        revision: the version; wins over that of the URI.
        network: connections, and the variables with the key.

    Raises:
        ConfigError: the URI has another form, or there is no version.
    """

    def __init__(self, uri: str, revision: str | None, network: Network) -> None:
        match = _URI.fullmatch(uri)
        version = named_revision(revision, (match["version"] or "") if match else "")
        if match is None or not version:
            raise ConfigError(f"'{redact(uri)}' must have the form ngc://ORG/[TEAM/]NAME:VERSION.")
        self.uri = uri
        self._org, self._team, self._version, self._asked = match["org"], match["team"], version, revision
        self._network = network
        self._lock = threading.Lock()
        self._token: str | None = None
        environ = network.config.environ
        self._key = next((environ[name].strip() for name in _KEYS if environ.get(name, "").strip()), None)
        self._endpoint = endpoint_of(environ, ("NGC_ENDPOINT",), "https://api.ngc.nvidia.com")
        self._login = endpoint_of(environ, ("NGC_AUTH_ENDPOINT",), "https://authn.nvidia.com/token")
        team, name = match["team"], match["name"]
        if self._key:
            folder = f"org/{self._org}/{f'team/{team}/' if team else ''}models/{name}"
        else:
            folder = f"models/{self._org}/{f'{team}/' if team else ''}{name}"
        self._files_url = f"{self._endpoint}/v2/{folder}/versions/{quote(version)}/files"
        self._advice = Advice(
            what=f"The model '{uri.removeprefix('ngc://').partition(':')[0]}:{version}' of NGC",
            unauthorized=(
                f"the key {shown(self._key)} is of an account without access, or its licence has not been accepted at "
                "https://catalog.ngc.nvidia.com."
                if self._key
                else "set NGC_API_KEY to a key of an account with access (https://org.ngc.nvidia.com/setup/api-keys)."
            ),
            not_found="check organisation, team, name and version; what is not public needs NGC_API_KEY.",
        )

    def list_files(self) -> Listing:
        """Lists the files."""
        with understanding(self._endpoint, "NGC_ENDPOINT"):
            marked = [(file, "") for file in self._files()]
        return make_listing(self._advice.what, marked, name=self._version, asked_revision=self._asked)

    def open_range(self, file: RemoteFile, start: int, end: int | None, validator: str | None) -> Range:
        """Asks for bytes of a file, with a new token if the old one has expired."""
        access = self._access()
        bounds = (start, end)
        try:
            return open_http_range(self._network, file.locator, file, bounds, validator, self._advice, access)
        except DownloadError as error:
            if error.cause is not HubCause.UNAUTHORIZED or not access.headers:
                raise
        with self._lock:
            self._token = None
        return open_http_range(self._network, file.locator, file, bounds, validator, self._advice, self._access())

    def close(self) -> None:
        """Leaves the network's connections open for others."""

    def _files(self) -> Iterator[RemoteFile]:
        page, num_pages = 0, 1
        while page < num_pages:
            url = f"{self._files_url}?{urlencode({'page-size': _PAGE_SIZE, 'page-number': page})}"
            answer = retrying(partial(self._page, url))
            for path, size in _listed(answer):
                yield RemoteFile(path, size, None, f"{self._files_url}/{quote(path)}")
            num_pages = int((answer.get("paginationInfo") or {}).get("totalPages", 1))
            page += 1

    def _page(self, url: str) -> Any:
        return ask_json(self._network, url, self._advice, self._access())[0]

    def _access(self) -> Access:
        if self._key is None:
            return Access(self._endpoint)
        with self._lock:
            if self._token is None:  # keys of the newer kind are tokens themselves
                self._token = self._key if self._key.startswith("nvapi-") else self._exchange(self._key)
            return Access(self._endpoint, {"Authorization": f"Bearer {self._token}"})

    def _exchange(self, key: str) -> str:
        scopes = [("scope", f"group/ngc:{self._org}")]
        if self._team:
            scopes.append(("scope", f"group/ngc:{self._org}/{self._team}"))
        url = f"{self._login}?{urlencode([('service', 'ngc'), *scopes])}"
        basic = base64.b64encode(f"$oauthtoken:{key}".encode()).decode()
        advice = Advice(
            what="A token of NGC",
            unauthorized=f"the key {shown(key)} is not valid (any more); set NGC_API_KEY to a new one.",
            not_found="check NGC_AUTH_ENDPOINT.",
        )
        answer, _ = retrying(
            lambda: ask_json(self._network, url, advice, Access(self._login, {"Authorization": f"Basic {basic}"}))
        )
        token = answer.get("token") if isinstance(answer, dict) else None
        if not isinstance(token, str):
            raise DownloadError(
                f"{self._login} gave no token for the key {shown(key)}; check it.", cause=HubCause.UNAUTHORIZED
            )
        return token


def _listed(answer: Mapping[str, Any]) -> Iterator[tuple[str, int | None]]:
    """Yields path and size of the files of a page: `modelFiles`, or the bare paths beside signed addresses."""
    if answer.get("modelFiles"):
        for entry in answer["modelFiles"]:
            size = entry.get("sizeInBytes", entry.get("size"))
            yield str(entry.get("path") or entry["name"]), None if size is None else int(size)
        return
    for path in answer.get("filepath") or ():
        yield str(path), None
