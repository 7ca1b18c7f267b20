"""`ModelScopeSource`: models of ModelScope, by the API that its own package uses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

import httpx

from vllm_mxext.errors import DownloadError, HubCause, HubError
from vllm_mxext.hub.network import Network
from vllm_mxext.hub.retrying import retrying
from vllm_mxext.hub.sources.answers import Advice, understanding
from vllm_mxext.hub.sources.endpoints import endpoint_of
from vllm_mxext.hub.sources.http_range import open_http_range
from vllm_mxext.hub.sources.interface import Listing, Range, RemoteFile
from vllm_mxext.hub.sources.listing import digest_of, make_listing, named_revision
from vllm_mxext.hub.sources.repository import Repository
from vllm_mxext.hub.sources.requests import Access, Redirects, ask_json
from vllm_mxext.redaction import redact, shown

_DEFAULT_ENDPOINT = "https://modelscope.cn"
_DEFAULT_REVISION = "master"
_MAX_ENTRIES = 3000
"""A listing of so many entries has been cut off by the server (modelscope_hub 0.5, `REPO_FILES_TRUNCATION_LIMIT`)."""

_MAX_DEPTH = 64
"""Folders in folders."""


class ModelScopeSource:
    """A model of ModelScope at one revision; see `Source`.

    Every file comes with its SHA-256. The server tells no commit; the revision is the branch and a digest of the list.

    Args:
        uri: `modelscope://ORG/NAME[@REVISION][/FOLDER]` or `ORG/NAME`; NVIDIA NIM writes `:REVISION`.
        revision: branch, tag or commit; wins over that of the URI; None = `master`.
        network: connections.

    Raises:
        ConfigError: the URI has another form.
    """

    def __init__(self, uri: str, revision: str | None, network: Network) -> None:
        self.uri = uri
        self._name, self._asked_revision, self._folder = Repository.parse("modelscope", uri, revision, needs_org=True)
        self._revision = named_revision(self._asked_revision, _DEFAULT_REVISION)
        self._network = network
        self._redirects = Redirects()
        environ = network.config.environ
        self._endpoint = endpoint_of(environ, ("MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN"), _DEFAULT_ENDPOINT)
        token = environ.get("MODELSCOPE_API_TOKEN", "").strip()
        credentials = {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}
        self._access = Access(self._endpoint, credentials)
        self._advice = Advice(
            what=f"The model '{self._name}' of {httpx.URL(self._endpoint).host}",
            unauthorized=(
                f"the token {shown(token)} is of an account without access; set MODELSCOPE_API_TOKEN to one that "
                "has it."
                if token
                else "set MODELSCOPE_API_TOKEN to a token of an account with access "
                "(https://modelscope.cn/my/access/token)."
            ),
            not_found=(
                f"check its name and the revision '{self._revision}' for typing errors; a private one is visible "
                "only with "
                "the MODELSCOPE_API_TOKEN of a member."
            ),
            explain=self._explain,
        )

    def list_files(self) -> Listing:
        """Lists the files."""
        with understanding(self._endpoint, "MODELSCOPE_ENDPOINT"):
            files = list(self._walk(""))
            marked = [(self._file(entry), "") for entry in files if entry["Path"].startswith(self._folder)]
        return make_listing(self._advice.what, marked, name=self._revision, asked_revision=self._asked_revision)

    def open_range(self, file: RemoteFile, start: int, end: int | None, validator: str | None) -> Range:
        """Asks for bytes of a file; the server ignores ranges of small ones."""
        return open_http_range(
            self._network, file.locator, file, (start, end), validator, self._advice, self._access, self._redirects
        )

    def close(self) -> None:
        """Leaves the network's connections open for others."""

    def _walk(self, folder: str) -> Iterator[Mapping[str, Any]]:
        """Yields the files below a folder; one list if that is whole, else one per folder."""
        entries = self._entries(folder, is_recursive=True)
        if len(entries) < _MAX_ENTRIES:
            yield from (entry for entry in entries if entry["Type"] != "tree")
            return
        entries = self._entries(folder, is_recursive=False)
        if len(entries) >= _MAX_ENTRIES:
            raise DownloadError(
                f"{self._advice.what} has more files in '{folder or '/'}' than the server lists; take it from "
                "another source."
            )
        for entry in entries:
            if entry["Type"] == "tree":
                inside = str(entry["Path"])
                if not inside.startswith(f"{folder}/" if folder else "") or inside.count("/") >= _MAX_DEPTH:
                    raise ValueError(inside)  # a server that goes round in circles
                yield from self._walk(inside)
            else:
                yield entry

    def _entries(self, folder: str, *, is_recursive: bool) -> list[Mapping[str, Any]]:
        query = {"Revision": self._revision, "Recursive": str(is_recursive), **({"Root": folder} if folder else {})}
        url = f"{self._endpoint}/api/v1/models/{self._name}/repo/files?{urlencode(query)}"
        answer, _ = retrying(lambda: ask_json(self._network, url, self._advice, self._access))
        data = answer.get("Data") if isinstance(answer, dict) else None
        files = data.get("Files") if isinstance(data, dict) else None
        if not isinstance(files, list):
            raise DownloadError(
                f"{self._endpoint} does not answer as ModelScope does ({_message(answer) or 'no list of files'}); "
                "check "
                "MODELSCOPE_ENDPOINT."
            )
        return files

    def _file(self, entry: Mapping[str, Any]) -> RemoteFile:
        query = urlencode({"Revision": self._revision, "FilePath": entry["Path"]})
        return RemoteFile(
            entry["Path"].removeprefix(self._folder),
            int(entry["Size"]) if entry.get("Size") is not None else None,
            digest_of(entry.get("Sha256")),
            f"{self._endpoint}/api/v1/models/{self._name}/repo?{query}",
        )

    def _explain(self, response: httpx.Response, body: bytes) -> HubError | None:
        try:
            message = _message(json.loads(body))
        except (ValueError, RecursionError):
            return None
        if response.status_code != 404 or not message:
            return None
        return DownloadError(
            f"{self._advice.what} does not exist ({message.rstrip('.')}): {self._advice.not_found}",
            cause=HubCause.NOT_FOUND,
        )


def _message(answer: object) -> str:
    return redact(str(answer.get("Message") or ""))[:200] if isinstance(answer, dict) else ""
