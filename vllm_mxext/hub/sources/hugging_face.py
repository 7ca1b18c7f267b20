"""`HuggingFaceSource`: models of the Hugging Face hub and of servers that speak its protocol (`HF_ENDPOINT`)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from vllm_mxext.errors import DownloadError, HubCause, HubError, TransferError
from vllm_mxext.hub.network import Network
from vllm_mxext.hub.retrying import retrying
from vllm_mxext.hub.sources.answers import Advice, understanding
from vllm_mxext.hub.sources.endpoints import endpoint_of
from vllm_mxext.hub.sources.http_range import HttpRange, open_http_range
from vllm_mxext.hub.sources.interface import Listing, Range, RemoteFile
from vllm_mxext.hub.sources.listing import digest_of
from vllm_mxext.hub.sources.repository import Repository
from vllm_mxext.hub.sources.requests import Access, Redirects, ask_json
from vllm_mxext.redaction import shown

_DEFAULT_ENDPOINT = "https://huggingface.co"
_COMMIT = re.compile(r"[0-9a-f]{40,64}")


class HuggingFaceSource:
    """A model of the hub at one revision; see `Source`.

    Large files come with the SHA-256 of their LFS pointers; of small ones the hub tells git's name for their content,
    which is checked here when they are read as a whole.

    Args:
        uri: `hf://ORG/NAME[@REVISION][/FOLDER]` or `ORG/NAME`; NVIDIA NIM writes `:REVISION`.
        revision: branch, tag or commit; wins over that of the URI; None = `main`.
        network: connections.

    Raises:
        ConfigError: the URI has another form.
    """

    def __init__(self, uri: str, revision: str | None, network: Network) -> None:
        self.uri = uri
        self._name, asked_revision, self._folder = Repository.parse("hf", uri, revision)
        self._revision = asked_revision or "main"
        self._network = network
        self._redirects = Redirects()
        environ = network.config.environ
        self._endpoint = endpoint_of(environ, ("HF_ENDPOINT",), _DEFAULT_ENDPOINT)
        self._token = network.config.hf_token or read_token(environ)
        self._access = Access(self._endpoint, {"Authorization": f"Bearer {self._token}"} if self._token else {})
        self._advice = Advice(
            what=f"The model '{self._name}' of {httpx.URL(self._endpoint).host}",
            unauthorized=self._how_to_get_in(),
            not_found="check its name for typing errors; a private one is visible only with the HF_TOKEN of a member.",
            explain=self._explain,
        )

    def list_files(self) -> Listing:
        """Lists the files of the commit that the revision stands for."""
        return retrying(self._list)

    def open_range(self, file: RemoteFile, start: int, end: int | None, validator: str | None) -> Range:
        """Asks for bytes of a file."""
        url, _, blob_id = file.locator.partition("#git=")
        opened = open_http_range(
            self._network, url, file, (start, end), validator, self._advice, self._access, self._redirects
        )
        if blob_id and opened.start == 0 and file.size is not None and (end is None or end >= file.size):
            return _GitRange(opened, file, blob_id)
        return opened

    def close(self) -> None:
        """Leaves the network's connections open for others."""

    def _list(self) -> Listing:
        url = f"{self._endpoint}/api/models/{self._name}/revision/{quote(self._revision, safe='')}?blobs=true"
        answer, _ = ask_json(self._network, url, self._advice, self._access)
        with understanding(self._endpoint, "HF_ENDPOINT"):
            commit = _commit(answer["sha"])
            entries = [entry for entry in answer["siblings"] if entry["rfilename"].startswith(self._folder)]
            files = tuple(sorted((self._file(entry, commit) for entry in entries), key=lambda file: file.path))
        if not files:
            raise DownloadError(f"{self._advice.what} has no files in '{self._folder}'.", cause=HubCause.NOT_FOUND)
        return Listing(commit, files)

    def _file(self, entry: Mapping[str, Any], commit: str) -> RemoteFile:
        path, lfs = entry["rfilename"], entry.get("lfs") or {}
        url = f"{self._endpoint}/{self._name}/resolve/{commit}/{quote(path)}"
        git = f"#git={entry['blobId']}" if entry.get("blobId") and not lfs else ""
        size = lfs.get("size", entry.get("size"))
        return RemoteFile(
            path.removeprefix(self._folder),
            None if size is None else int(size),
            digest_of(lfs.get("sha256")),
            url + git,
        )

    def _how_to_get_in(self) -> str:
        if self._token:
            return f"the token {shown(self._token)} is of an account without access; set HF_TOKEN to one that has it."
        return "set HF_TOKEN to a token of an account with access (https://huggingface.co/settings/tokens)."

    def _explain(self, response: httpx.Response, body: bytes) -> HubError | None:
        del body
        code, message = response.headers.get("X-Error-Code"), response.headers.get("X-Error-Message", "")
        what, page = self._advice.what, f"{self._endpoint}/{self._name}"
        if code == "GatedRepo":
            how = (
                f"the account of the token {shown(self._token)} has not been let in: accept the licence at "
                f"{page}, or set "
                "HF_TOKEN to a token that may read gated models."
                if self._token
                else f"accept its licence at {page}, and set HF_TOKEN to a token of that account."
            )
            return DownloadError(f"{what} is gated; {how}", cause=HubCause.UNAUTHORIZED)
        if response.status_code == 401 and self._token and "credentials" in message.lower():
            return DownloadError(
                f"The Hugging Face token {shown(self._token)} is not valid any more; set HF_TOKEN to a new one from "
                "https://huggingface.co/settings/tokens, or remove it.",
                cause=HubCause.UNAUTHORIZED,
            )
        if code == "RepoNotFound":
            return DownloadError(
                f"{what} does not exist or is private: check its name, or {self._how_to_get_in()}",
                cause=HubCause.NOT_FOUND if response.status_code == 404 else HubCause.UNAUTHORIZED,
            )
        if code == "RevisionNotFound":
            return DownloadError(
                f"{what} has no revision '{self._revision}'; {page}/tree/main shows those it has.",
                cause=HubCause.NOT_FOUND,
            )
        if code == "EntryNotFound":
            return DownloadError(
                f"A listed file of {what[0].lower()}{what[1:]} is not there any more; list it again.",
                cause=HubCause.NOT_FOUND,
            )
        return None


class _GitRange:
    """A whole small file, held against git's name for its content; see `Range`."""

    def __init__(self, opened: HttpRange, file: RemoteFile, blob_id: str) -> None:
        self.start, self.total_size, self.validator = opened.start, opened.total_size, opened.validator
        self._opened = opened
        self._file = file
        self._blob_id = blob_id

    def chunks(self) -> Iterator[bytes]:
        """Yields the bytes as they arrive, the last of them only if all are those of the commit."""
        size, num_received = self._file.size or 0, 0
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        for chunk in self._opened.chunks():
            digest.update(chunk)
            num_received += len(chunk)
            if num_received >= size and digest.hexdigest() != self._blob_id:
                raise TransferError(f"'{self._file.path}' arrived damaged: git knows other content; try again.")
            yield chunk

    def __enter__(self) -> _GitRange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, error, trace)


def _commit(text: str) -> str:
    """Returns the text, which becomes a part of addresses and of a folder's name.

    Raises:
        ValueError: it is no commit.
    """
    if not _COMMIT.fullmatch(text):
        raise ValueError(text)
    return text


def read_token(environ: Mapping[str, str]) -> str | None:
    """Returns the token where the hub's own package looks for it: variables, then its file."""
    token = environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN")
    if token and token.strip():
        return token.strip()
    home = Path(environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    if "HOME" in environ or home.is_absolute() or "HF_TOKEN_PATH" in environ:
        path = Path(environ.get("HF_TOKEN_PATH") or home / "token")
        try:
            return _at_home(path, environ).read_text(encoding="utf-8").strip() or None
        except (OSError, UnicodeDecodeError):
            return None
    return None


def _at_home(path: Path, environ: Mapping[str, str]) -> Path:
    if path.parts and path.parts[0] == "~":
        return Path(environ.get("HOME", "~"), *path.parts[1:])
    return path
