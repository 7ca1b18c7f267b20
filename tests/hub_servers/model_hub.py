"""`ModelHub`: a server that speaks the protocols of Hugging Face and ModelScope over folders, and its CDN."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from tests.hub_servers.stand_in import Answer, Asked, StandIn, file_answer, git_blob_id, json_answer, sha256_of

_LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt")
_SIGNATURE = "X-Amz-Signature=5ec2e7"


@dataclass
class HostedModel:
    """One repository.

    Attributes:
        folders: revision -> files; `main` and `master` are one.
        is_private: unknown to those without a token.
        is_gated: its files need a token of somebody who accepted the licence.
    """

    folders: dict[str, Path] = field(default_factory=dict)
    is_private: bool = False
    is_gated: bool = False


class Cdn(StandIn):
    """Serves blobs by digest to those with a signature, and refuses requests with credentials, as S3 does."""

    def __init__(self) -> None:
        super().__init__("localhost")
        self.blobs: dict[str, Path] = {}

    def answer(self, asked: Asked) -> Answer:
        if "authorization" in asked.headers or "cookie" in asked.headers:
            return Answer(400, body=b"Only one auth mechanism allowed")
        if "X-Amz-Signature" not in asked.query:
            return Answer(403, body=b"AccessDenied")
        digest = asked.path.rpartition("/")[2]
        return file_answer(asked, self.blobs[digest], f'"{digest[:32]}"')


class ModelHub(StandIn):
    """A hub of models.

    Attributes:
        models: `org/name` -> repository.
        tokens: valid ones -> whether their owner accepted the licences.
        max_listed: entries of one list of ModelScope's at most.
        cdn: where large files are; start and stop go with the hub.
    """

    def __init__(self) -> None:
        super().__init__()
        self.models: dict[str, HostedModel] = {}
        self.tokens: dict[str, bool] = {}
        self.max_listed = 3000
        self.cdn = Cdn()

    def add(
        self, name: str, folder: Path, revision: str = "main", *, is_private: bool = False, is_gated: bool = False
    ) -> str:
        """Hosts a folder; returns the commit."""
        model = self.models.setdefault(name, HostedModel())
        model.folders[revision] = folder
        model.is_private, model.is_gated = is_private, is_gated
        return commit_of(folder)

    def start(self) -> None:
        super().start()
        self.cdn.start()

    def stop(self) -> None:
        super().stop()
        self.cdn.stop()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def answer(self, asked: Asked) -> Answer:
        routes = (
            (r"/api/v1/models/([^/]+/[^/]+)(/repo/files|/repo|/revisions|)", self._modelscope),
            (r"/api/models/([^/]+/[^/]+?)(?:/(revision|tree)/([^/]+)/?(.*))?", self._hf_api),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._hf_resolve),
            (r"/api/resolve-cache/models/([^/]+/[^/]+)/([^/]+)/(.+)", self._hf_small_file),
        )
        for pattern, route in routes:
            match = re.fullmatch(pattern, asked.path)
            if match:
                return route(asked, *match.groups(default=""))  # type: ignore[operator, no-any-return]
        return Answer(404, {"X-Error-Message": "Sorry, we can't find the page you are looking for."})

    def _token(self, asked: Asked) -> str | None:
        bearer = asked.headers.get("authorization", "").removeprefix("Bearer ")
        cookie = re.search(r"m_session_id=([^;]+)", asked.headers.get("cookie", ""))
        token = bearer or (cookie[1] if cookie else "")
        return token if token in self.tokens else None

    def _folder(self, model: HostedModel, revision: str) -> Path | None:
        revision = "main" if revision == "master" else revision
        by_commit = {commit_of(folder): folder for folder in model.folders.values()}
        return model.folders.get(revision) or by_commit.get(revision)

    # Hugging Face

    def _hf_repository(self, asked: Asked, name: str, revision: str) -> Answer | Path:
        model, token = self.models.get(name), self._token(asked)
        if "authorization" in asked.headers and token is None:
            return Answer(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        if model is None or (model.is_private and token is None):
            return Answer(
                404 if token else 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            )
        folder = self._folder(model, revision)
        if folder is None:
            return Answer(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"})
        return folder

    def _hf_api(self, asked: Asked, name: str, what: str, revision: str, path: str) -> Answer:
        folder = self._hf_repository(asked, name, revision or "main")
        if isinstance(folder, Answer):
            return folder
        files = [_hf_entry(folder, file) for file in _files(folder)]
        if what == "tree":
            inside = [entry for entry in files if entry["path"].startswith(f"{path}/" if path else "")]
            return json_answer([{key: entry[key] for key in entry if key != "lfs" or entry["lfs"]} for entry in inside])
        has_blobs = asked.query.get("blobs", "").lower() == "true"
        return json_answer(
            {
                "_id": "1", "id": name, "modelId": name, "sha": commit_of(folder), "private": False, "tags": [],
                "gated": "manual" if self.models[name].is_gated else False, "downloads": 0, "likes": 0,
                "siblings": [_hf_sibling(entry, has_blobs) for entry in files],
            }
        )  # fmt: skip

    def _hf_file(self, asked: Asked, name: str, revision: str, path: str) -> Answer | tuple[Path, str, Path]:
        folder = self._hf_repository(asked, name, revision)
        if isinstance(folder, Answer):
            return folder
        token = self._token(asked)
        if self.models[name].is_gated and not (token and self.tokens[token]):
            text = f"Access to model {name} is restricted and you are not in the authorized list."
            return Answer(403 if token else 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": text})
        file = folder / path
        if not file.is_file():
            return Answer(404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        return file, commit_of(folder), folder

    def _hf_resolve(self, asked: Asked, name: str, revision: str, path: str) -> Answer:
        found = self._hf_file(asked, name, revision, path)
        if isinstance(found, Answer):
            return found
        file, commit, _ = found
        if file.suffix in _LFS_SUFFIXES:
            digest = sha256_of(file)
            headers = {
                "X-Repo-Commit": commit,
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(file.stat().st_size),
            }
            return Answer(302, {**headers, "Location": self._cdn_url(file, digest)})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git_blob_id(file)}"'}
        location = f"/api/resolve-cache/models/{name}/{commit}/{quote(path)}"
        return Answer(307, {**headers, "X-Linked-Size": str(file.stat().st_size), "Location": location})

    def _hf_small_file(self, asked: Asked, name: str, revision: str, path: str) -> Answer:
        found = self._hf_file(asked, name, revision, path)
        if isinstance(found, Answer):
            return found
        return file_answer(asked, found[0], f'"{git_blob_id(found[0])}"', {"X-Repo-Commit": found[1]})

    def _cdn_url(self, file: Path, digest: str) -> str:
        self.cdn.blobs[digest] = file
        return f"{self.cdn.url}/repos/{digest}?{_SIGNATURE}&X-Amz-Expires=3600"

    # ModelScope

    def _modelscope(self, asked: Asked, name: str, what: str) -> Answer:
        model, token = self.models.get(name), self._token(asked)
        if model is None or (model.is_private and token is None):
            return _modelscope_error(404, 10010205001, f"the repo {name} does not exist or is private")
        revision = asked.query.get("Revision", "master")
        folder = self._folder(model, revision)
        if folder is None:
            return _modelscope_error(404, 10010205002, f"revision {revision} does not exist")
        if what == "/revisions":
            revisions = [{"Revision": name, "CreatedAt": 0} for name in ("master", *model.folders)]
            return _modelscope_answer({"RevisionMap": {"Branches": revisions, "Tags": []}})
        if what == "/repo/files":
            entries = _modelscope_entries(folder, asked.query.get("Root", ""), asked.query.get("Recursive") == "True")
            return _modelscope_answer({"Files": entries[: self.max_listed]})
        if what == "/repo":
            return self._modelscope_file(asked, model, folder, token)
        owner, _, title = name.partition("/")
        return _modelscope_answer({"Id": 1, "Path": owner, "Name": title})

    def _modelscope_file(self, asked: Asked, model: HostedModel, folder: Path, token: str | None) -> Answer:
        if model.is_gated and not (token and self.tokens[token]):
            return _modelscope_error(403, 10010205003, "the model needs an application")
        file = folder / asked.query["FilePath"]
        if not file.is_file():
            return _modelscope_error(404, 10010205004, "file not found")
        if file.suffix in _LFS_SUFFIXES:
            digest = sha256_of(file)
            return Answer(302, {"Location": self._cdn_url(file, digest), "X-Linked-ETag": f'"{digest}"'})
        return Answer(200, {"Content-Type": "application/octet-stream"}, file=file, end=file.stat().st_size)


def commit_of(folder: Path) -> str:
    """Returns the commit that stands for a folder's content."""
    text = "".join(f"{file}:{sha256_of(folder / file)}\n" for file in _files(folder))
    return hashlib.sha1(text.encode()).hexdigest()


def _files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def _hf_entry(folder: Path, path: str) -> dict[str, Any]:
    file = folder / path
    size, lfs = file.stat().st_size, None
    if file.suffix in _LFS_SUFFIXES:
        lfs = {"oid": sha256_of(file), "size": size, "pointerSize": 134}
    return {"type": "file", "oid": git_blob_id(file), "size": size, "path": path, "lfs": lfs}


def _hf_sibling(entry: dict[str, Any], has_blobs: bool) -> dict[str, Any]:
    if not has_blobs:
        return {"rfilename": entry["path"]}
    sibling = {"rfilename": entry["path"], "size": entry["size"], "blobId": entry["oid"]}
    if entry["lfs"]:
        lfs = entry["lfs"]
        sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
    return sibling


def _modelscope_entries(folder: Path, root: str, is_recursive: bool) -> list[dict[str, Any]]:
    files = _files(folder / root)
    entries = [_modelscope_entry(folder, (Path(root) / file).as_posix()) for file in files]
    if is_recursive:
        return entries
    parts = sorted({file.partition("/")[0] for file in files if "/" in file})
    trees = [{"Name": part, "Path": (Path(root) / part).as_posix(), "Type": "tree", "Size": 0} for part in parts]
    return trees + [entry for entry, file in zip(entries, files, strict=True) if "/" not in file]


def _modelscope_entry(folder: Path, path: str) -> dict[str, Any]:
    file = folder / path
    return {
        "Name": file.name, "Path": path, "Type": "blob", "Size": file.stat().st_size, "Sha256": sha256_of(file),
        "Revision": commit_of(folder), "IsLFS": file.suffix in _LFS_SUFFIXES, "Mode": "33188", "CommittedDate": 0,
    }  # fmt: skip


def _modelscope_answer(data: Any) -> Answer:
    return json_answer({"Code": 200, "Data": data, "Message": "success", "RequestId": "1", "Success": True})


def _modelscope_error(status: int, code: int, message: str) -> Answer:
    return json_answer({"Code": code, "Message": message, "RequestId": "1", "Success": False}, status)
