"""Stand-ins for Google Cloud Storage, NGC and a container registry, each as its published interface says."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from tests.hub_servers.stand_in import Answer, Asked, StandIn, file_answer, json_answer, sha256_of


def _files(folder: Path) -> dict[str, Path]:
    return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}


class GoogleStorage(StandIn):
    """Buckets of the JSON interface (storage/v1): lists in pages of two, media by generation.

    Attributes:
        buckets: name -> object -> file.
        token: that is wanted; None = public.
    """

    def __init__(self) -> None:
        super().__init__()
        self.buckets: dict[str, dict[str, Path]] = {}
        self.token: str | None = None

    def answer(self, asked: Asked) -> Answer:
        match = re.fullmatch(r"/storage/v1/b/([^/]+)/o(?:/(.+))?", asked.path)
        if match is None or match[1] not in self.buckets:
            return json_answer({"error": {"code": 404, "message": "The specified bucket does not exist."}}, 404)
        if self.token and asked.headers.get("authorization") != f"Bearer {self.token}":
            return json_answer({"error": {"code": 401, "message": "Anonymous caller does not have access"}}, 401)
        objects = self.buckets[match[1]]
        if match[2]:
            file = objects[match[2]]
            if asked.query.get("generation") != _generation(file):
                return json_answer({"error": {"code": 404, "message": "No such object"}}, 404)
            return file_answer(asked, file, f'"{_generation(file)}"')
        names = [name for name in sorted(objects) if name.startswith(asked.query.get("prefix", ""))]
        begin = int(asked.query.get("pageToken", 0))
        items = [
            {"name": name, "size": str(objects[name].stat().st_size), "generation": _generation(objects[name])}
            for name in names[begin : begin + 2]
        ]
        more = {"nextPageToken": str(begin + 2)} if begin + 2 < len(names) else {}
        return json_answer({"kind": "storage#objects", "items": items, **more})


def _generation(file: Path) -> str:
    return str(int(sha256_of(file)[:12], 16))


class Ngc(StandIn):
    """The catalogue: public models at `/v2/models/`, private ones at `/v2/org/` for keys and the tokens for them.

    Attributes:
        models: path between `/v2/` and `/versions` -> version -> folder.
        key: of the newer kind, a token itself.
        old_key: for which `/token` gives a token.
        num_tokens: given so far; only the last one is valid.
        listed: the answer to every list; None = what is there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.listed: Any = None
        self.models: dict[str, dict[str, Path]] = {}
        self.key = "nvapi-key-of-a-member"
        self.old_key = "an-old-key-of-a-member"
        self.num_tokens = 0

    def answer(self, asked: Asked) -> Answer:  # noqa: PLR0911 - a table of routes
        if asked.path == "/token":
            expected = base64.b64encode(f"$oauthtoken:{self.old_key}".encode()).decode()
            if asked.headers.get("authorization") != f"Basic {expected}":
                return json_answer({"error": "denied"}, 401)
            self.num_tokens += 1
            return json_answer({"token": f"token-{self.num_tokens}", "expires_in": 900})
        match = re.fullmatch(r"/v2/(.+)/versions/([^/]+)/files(?:/(.+))?", asked.path)
        if match is None or match[2] not in self.models.get(match[1], {}):
            return json_answer({"requestStatus": {"statusCode": "NOT_FOUND"}}, 404)
        valid = (f"Bearer {self.key}", f"Bearer token-{self.num_tokens}")
        if match[1].startswith("org/") and asked.headers.get("authorization") not in valid:
            return json_answer({"requestStatus": {"statusCode": "UNAUTHORIZED"}}, 401)
        files = _files(self.models[match[1]][match[2]])
        if match[3]:
            return file_answer(asked, files[match[3]], f'"{sha256_of(files[match[3]])[:32]}"')
        if self.listed is not None:
            return json_answer(self.listed)
        pages = [list(files)[begin : begin + 4] for begin in range(0, len(files), 4)]
        names = pages[int(asked.query["page-number"])]
        entries = [{"path": name, "sizeInBytes": files[name].stat().st_size} for name in names]
        return json_answer({"modelFiles": entries, "paginationInfo": {"totalPages": len(pages)}})


class Registry(StandIn):
    """A container registry with a token service, as Docker's: anonymous tokens for public repositories.

    Attributes:
        manifests: `repository:reference` -> the bytes.
        blobs: digest -> file.
        login: `user:password` that private repositories want; None = public.
        num_tokens: given so far; only the last one is valid.
    """

    def __init__(self) -> None:
        super().__init__()
        self.manifests: dict[str, bytes] = {}
        self.blobs: dict[str, Path] = {}
        self.login: str | None = None
        self.num_tokens = 0

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def push(self, repository: str, tag: str, folder: Path, annotation: str = "org.opencontainers.image.title") -> str:
        """Stores a folder with a layer per file; returns the manifest's digest."""
        layers = [_layer(file, {annotation: path}) for path, file in _files(folder).items()]
        self.blobs.update({layer["digest"]: file for layer, file in zip(layers, _files(folder).values(), strict=True)})
        return self.push_manifest(repository, tag, {"schemaVersion": 2, "layers": layers})

    def push_manifest(self, repository: str, tag: str, manifest: Any) -> str:
        body = json.dumps(manifest).encode()
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        self.manifests[f"{repository}:{tag}"] = self.manifests[f"{repository}:{digest}"] = body
        return digest

    def answer(self, asked: Asked) -> Answer:  # noqa: PLR0911 - a table of routes
        if asked.path == "/token":
            basic = base64.b64encode((self.login or "").encode()).decode()
            if self.login and asked.headers.get("authorization") != f"Basic {basic}":
                return json_answer({"errors": [{"code": "UNAUTHORIZED"}]}, 401)
            self.num_tokens += 1
            return json_answer({"token": f"pull-{self.num_tokens}", "expires_in": 300})
        match = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/([^/]+)", asked.path)
        if match is None:
            return Answer(404)
        if asked.headers.get("authorization") != f"Bearer pull-{self.num_tokens}":
            scope = f'realm="{self.url}/token",service="registry",scope="repository:{match[1]}:pull"'
            return json_answer({"errors": [{"code": "UNAUTHORIZED"}]}, 401, {"WWW-Authenticate": f"Bearer {scope}"})
        if match[2] == "blobs" and match[3] in self.blobs:
            return file_answer(asked, self.blobs[match[3]], f'"{match[3]}"')
        body = self.manifests.get(f"{match[1]}:{match[3]}")
        if match[2] == "manifests" and body is not None:
            return Answer(200, {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}, body)
        return json_answer({"errors": [{"code": "MANIFEST_UNKNOWN"}]}, 404)


def _layer(file: Path, annotations: dict[str, str]) -> dict[str, Any]:
    return {
        "mediaType": "application/vnd.cncf.model.weight.v1.raw",
        "digest": f"sha256:{sha256_of(file)}",
        "size": file.stat().st_size,
        "annotations": annotations,
    }
