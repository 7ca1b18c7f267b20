"""`GoogleStorageSource`: objects of Google Cloud Storage, read by its JSON interface."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

from vllm_mxext.hub.network import Network
from vllm_mxext.hub.retrying import retrying
from vllm_mxext.hub.sources.answers import Advice, understanding
from vllm_mxext.hub.sources.endpoints import endpoint_of
from vllm_mxext.hub.sources.http_range import open_http_range
from vllm_mxext.hub.sources.interface import Listing, Range, RemoteFile
from vllm_mxext.hub.sources.listing import make_listing
from vllm_mxext.hub.sources.requests import Access, ask_json
from vllm_mxext.hub.sources.s3 import parse_bucket

_TOKENS = ("GOOGLE_OAUTH_ACCESS_TOKEN", "CLOUDSDK_AUTH_ACCESS_TOKEN")


class GoogleStorageSource:
    """The objects below a prefix of a bucket, in the generations that were listed; see `Source`.

    Args:
        uri: `gs://BUCKET[/PREFIX]`.
        revision: one that `list_files()` has given before; others mean nothing here.
        network: connections, and the variables with the token.

    Raises:
        ConfigError: the URI has another form.
    """

    def __init__(self, uri: str, revision: str | None, network: Network) -> None:
        self._bucket, self._prefix = parse_bucket(uri)
        self.uri = uri
        self._revision = revision
        self._network = network
        environ = network.config.environ
        self._endpoint = endpoint_of(environ, ("STORAGE_EMULATOR_HOST",), "https://storage.googleapis.com")
        token = next((environ[name] for name in _TOKENS if environ.get(name)), None)
        self._access = Access(self._endpoint, {"Authorization": f"Bearer {token}"} if token else {})
        self._advice = Advice(
            what=f"What is at {uri}",
            unauthorized=(
                "the token in the environment may not read it or has expired; get another one with "
                "`gcloud auth print-access-token`."
                if token
                else f"set {_TOKENS[0]} to what `gcloud auth print-access-token` prints, for an account that may "
                "read it."
            ),
            not_found="check bucket and prefix.",
        )

    def list_files(self) -> Listing:
        """Lists the objects."""
        with understanding(self._endpoint, "STORAGE_EMULATOR_HOST"):
            items = [item for item in self._items() if not item["name"].endswith("/")]
            marked = [(self._file(item), str(item["generation"])) for item in items]
        return make_listing(self._advice.what, marked, name="files", asked_revision=self._revision)

    def open_range(self, file: RemoteFile, start: int, end: int | None, validator: str | None) -> Range:
        """Asks for bytes of an object."""
        return open_http_range(self._network, file.locator, file, (start, end), validator, self._advice, self._access)

    def close(self) -> None:
        """Leaves the network's connections open for others."""

    def _items(self) -> Iterator[Mapping[str, Any]]:
        page = ""
        while True:
            query = {"prefix": self._prefix, "fields": "items(name,size,generation),nextPageToken"}
            if page:
                query["pageToken"] = page
            url = f"{self._endpoint}/storage/v1/b/{quote(self._bucket)}/o?{urlencode(query)}"
            answer = retrying(partial(self._page, url))
            yield from answer.get("items", [])
            page = answer.get("nextPageToken", "")
            if not page:
                return

    def _page(self, url: str) -> Any:
        return ask_json(self._network, url, self._advice, self._access)[0]

    def _file(self, item: Mapping[str, Any]) -> RemoteFile:
        query = urlencode({"alt": "media", "generation": item["generation"]})
        url = f"{self._endpoint}/storage/v1/b/{quote(self._bucket)}/o/{quote(item['name'], safe='')}?{query}"
        return RemoteFile(item["name"].removeprefix(self._prefix), int(item["size"]), None, url)
