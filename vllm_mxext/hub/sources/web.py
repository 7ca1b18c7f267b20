"""`WebSource`: one file, or a folder without an index, on a web server."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from urllib.parse import quote, unquote

import httpx

from vllm_mxext.errors import ConfigError, DownloadError, HubCause
from vllm_mxext.hub.network import Network
from vllm_mxext.hub.retrying import retrying
from vllm_mxext.hub.sources.answers import Advice
from vllm_mxext.hub.sources.http_range import HttpRange, open_http_range
from vllm_mxext.hub.sources.interface import Listing, Range, RemoteFile
from vllm_mxext.hub.sources.listing import make_listing
from vllm_mxext.hub.sources.parallel import in_parallel
from vllm_mxext.hub.sources.requests import ask, ask_json, read_all
from vllm_mxext.redaction import redact

_SUMS = "SHA256SUMS"
_INDEX = "model.safetensors.index.json"

WELL_KNOWN = (
    "LICENSE",
    "README.md",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors",
    _INDEX,
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
"""Names that are asked for in a folder whose files nothing lists."""

_FILE_SUFFIXES = (".safetensors", ".gguf", ".json", ".bin", ".pt", ".pth", ".model", ".jinja", ".txt")


class WebSource:
    """Files below a URL; see `Source`.

    What a folder has is told, in this order, by `files`, by a file `SHA256SUMS` in it (as `sha256sum` writes it), or by
    asking for well-known names and the shards that `model.safetensors.index.json` names.

    Args:
        uri: of a file, or of a folder (a slash at its end, or no suffix of a file).
        revision: one that `list_files()` has given before; others mean nothing here.
        network: connections.
        files: that are known to be there, from a manifest.

    Raises:
        ConfigError: the URL has a user or password.
    """

    def __init__(self, uri: str, revision: str | None, network: Network, files: Sequence[RemoteFile] = ()) -> None:
        url = httpx.URL(uri)
        if url.userinfo:
            raise ConfigError(f"'{redact(uri)}' must not have a user or password in it; use a signed address instead.")
        self.uri = redact(uri)
        self._url = url
        self._revision = revision
        self._network = network
        self._files = files
        self._advice = Advice(
            what=f"What is at {self.uri}",
            unauthorized="the server wants credentials, which this scheme has none of; use a signed address.",
            not_found="check the address.",
        )

    def list_files(self) -> Listing:
        """Lists the file, or those of the folder."""
        if self._is_file():
            name = PurePosixPath(unquote(self._url.path)).name
            found = [self._probe(RemoteFile(name, locator=str(self._url)))]
        elif self._files:
            found = [(self._located(file), "") for file in self._files]
        else:
            found = self._listed_by_sums() or self._listed_by_names()
        marked = [entry for entry in found if entry is not None]
        return make_listing(self._advice.what, marked, name="files", asked_revision=self._revision)

    def open_range(self, file: RemoteFile, start: int, end: int | None, validator: str | None) -> Range:
        """Asks for bytes of a file."""
        return self._open(file, start, end, validator)

    def close(self) -> None:
        """Leaves the network's connections open for others."""

    def _open(self, file: RemoteFile, start: int, end: int | None, validator: str | None) -> HttpRange:
        return open_http_range(self._network, file.locator, file, (start, end), validator, self._advice)

    def _is_file(self) -> bool:
        return self._url.path.lower().endswith(_FILE_SUFFIXES)

    def _address(self, path: str) -> str:
        folder = self._url.raw_path.decode().partition("?")
        return str(
            self._url.copy_with(raw_path=f"{folder[0].rstrip('/')}/{quote(path)}{folder[1]}{folder[2]}".encode())
        )

    def _located(self, file: RemoteFile) -> RemoteFile:
        return RemoteFile(file.path, file.size, file.sha256, self._address(file.path))

    def _probe(self, file: RemoteFile) -> tuple[RemoteFile, str] | None:
        """Returns a file with its size and validator, by asking for its first byte; None if it is not there."""

        def first_byte() -> tuple[int | None, str | None]:
            with self._open(file, 0, 1, None) as opened:
                return opened.total_size, opened.validator

        try:
            size, validator = retrying(first_byte)
        except DownloadError as error:
            if error.cause is not HubCause.NOT_FOUND or self._is_file():
                raise
            return None
        return RemoteFile(file.path, size, file.sha256, file.locator), validator or ""

    def _probe_all(self, files: Iterable[RemoteFile]) -> list[tuple[RemoteFile, str] | None]:
        return in_parallel(self._probe, list(files), self._network.config.num_connections)

    def _listed_by_sums(self) -> list[tuple[RemoteFile, str] | None]:
        advice = self._advice
        try:
            text = retrying(lambda: read_all(ask(self._network, self._address(_SUMS)), advice)).decode(
                "utf-8", "replace"
            )
        except DownloadError as error:
            if error.cause in (HubCause.NOT_FOUND, HubCause.UNAUTHORIZED):  # S3 says 403 for what is not there
                return []
            raise
        lines = re.findall(r"^([0-9a-fA-F]{64}) [ *](?:\./)?(\S.*?)\s*$", text, re.MULTILINE)
        return self._probe_all(RemoteFile(path, None, digest.lower(), self._address(path)) for digest, path in lines)

    def _listed_by_names(self) -> list[tuple[RemoteFile, str] | None]:
        found = self._probe_all(self._located(RemoteFile(name)) for name in WELL_KNOWN)
        shards: list[str] = []
        for entry in found:
            if entry is not None and entry[0].path == _INDEX:
                shards = _shards(retrying(lambda: ask_json(self._network, self._address(_INDEX), self._advice))[0])
        if not any(found):
            raise DownloadError(
                f"{self._advice.what} has none of the files of a model; put a {_SUMS} (sha256sum * > {_SUMS}) into the "
                "folder, or give the address of one file.",
                cause=HubCause.NOT_FOUND,
            )
        return found + self._probe_all(self._located(RemoteFile(name)) for name in shards)


def _shards(index: object) -> list[str]:
    weights = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(weights, Mapping):
        raise DownloadError(f"'{_INDEX}' is no index of safetensors files; correct it at the source.")
    return sorted({str(name) for name in weights.values()})
