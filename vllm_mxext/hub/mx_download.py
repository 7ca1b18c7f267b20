"""`pull()`: the files of a model, from the first source that has them, whole and verified in the store.

`python -m vllm_mxext.hub.mx_download MODEL` pulls what a server of that model would, and prints its folder.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vllm_mxext.config.hub import HubConfig
from vllm_mxext.errors import ChecksumError, ConfigError, DownloadError, HubCause, MissingDependencyError, MxError
from vllm_mxext.hub.manifest.model import Artifact, ModelEntry, Security, SignatureRule
from vllm_mxext.hub.progress import Listener, Phase, Progress, ignore
from vllm_mxext.hub.store.hf_cache import CachedBlobs, find_snapshot, hugging_face_folder
from vllm_mxext.hub.store.model_store import ModelStore
from vllm_mxext.hub.store.snapshot import Snapshot, StoredFile
from vllm_mxext.logger import init_logger

if TYPE_CHECKING:  # they import what only downloads need
    from vllm_mxext.hub.network import Network
    from vllm_mxext.hub.sources.interface import Listing, RemoteFile, Source

logger = init_logger(__name__)

PROG = "python -m vllm_mxext.hub.mx_download"

_WITH_REVISION = re.compile(r"((?:hf|modelscope)://[^@]*)@([^/]*)")
"""URIs that may have a revision."""


class NeedsDownloadError(Exception):
    """Something has to be downloaded, and this call may not; never shown to users."""


@dataclass(frozen=True, slots=True)
class Downloading:
    """How missing files are to be had.

    Attributes:
        listener: told about progress.
        cancel: stops downloads when set; what has arrived is kept.
        is_allowed: False = do not, raise `NeedsDownloadError` instead.
    """

    listener: Listener = ignore
    cancel: threading.Event | None = None
    is_allowed: bool = True


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be pulled.

    Attributes:
        entry: the model.
        artifact: which of its files.
        revision: branch, tag or commit; empty = what the source says.
    """

    entry: ModelEntry
    artifact: Artifact
    revision: str = ""

    @property
    def store_name(self) -> str:
        """Name in the store: the model's, and the artifact's if it has several."""
        return f"{self.entry.name}/{self.artifact.name}" if len(self.entry.artifacts) > 1 else self.entry.name

    @property
    def asked_revision(self) -> str:
        """The revision, or the one that the first source's URI ends with; empty = what the source says."""
        return self.revision or split_revision(self.uris[0] if self.uris else "")[1]

    @property
    def uris(self) -> tuple[str, ...]:
        """Sources in order of preference."""
        return self.artifact.sources or self.entry.sources


def split_revision(uri: str) -> tuple[str, str]:
    """Returns a URI without its revision, and that; empty if it names none."""
    match = _WITH_REVISION.match(uri)
    return (uri, "") if match is None else (f"{match[1]}{uri[match.end() :]}", match[2])


def wish_for(entry: ModelEntry, config: HubConfig, artifact: str | None = None) -> Wish:
    """Returns what a model's profile needs.

    Args:
        entry: the model.
        config: may name a revision, or that of the lock file counts.
        artifact: name of the artifact; None = the first one, or whatever is needed of safetensors.

    Raises:
        HubError: only what the lock file pins is allowed, and it does not pin this.
    """
    found = next((each for each in entry.artifacts if artifact in (None, each.name)), Artifact("model"))
    wish = Wish(entry, found, config.revision or found.revision or entry.revision or "")
    if config.is_frozen and config.revision is None:
        from vllm_mxext.hub.store.lock_file import read_lock_file  # noqa: PLC0415 - few use it

        return replace(wish, revision=read_lock_file(config.lock_file).revision(wish.store_name))
    return wish


def stored(wish: Wish, store: ModelStore) -> Snapshot | None:
    """Returns the snapshot that fulfils a wish without any connection; None if there is none."""
    snapshot = store.snapshot(wish.store_name, wish.asked_revision or None)
    if snapshot is None:
        return None
    there = {file.path: file.sha256 for file in snapshot.files}
    for file in wish.artifact.files:
        if file.path not in there or file.sha256 not in (None, there[file.path]):
            return None
    return snapshot


def is_here(wish: Wish, config: HubConfig) -> bool:
    """Whether what is wanted is on this machine, in the store or in the cache of another program."""
    return stored(wish, ModelStore(config.folder)) is not None or _cached(wish, config) is not None


def obtain(wish: Wish, config: HubConfig, downloading: Downloading) -> tuple[Path, Snapshot | None]:
    """Returns the folder of what is wanted, and its snapshot unless it is in the cache of another program.

    What is stored is taken as it is; its source is not asked whether there is something newer.

    Raises:
        HubError: it cannot be had.
        NeedsDownloadError: it would have to be downloaded, and may not.
    """
    name = wish.entry.name
    snapshot = stored(wish, ModelStore(config.folder))
    if snapshot is not None:
        if config.is_frozen:
            from vllm_mxext.hub.store.lock_file import read_lock_file  # noqa: PLC0415 - few use it

            read_lock_file(config.lock_file).check_snapshot(wish.store_name, snapshot)
        check_signature(wish.entry, config, snapshot.folder)
        return snapshot.folder, snapshot
    folder = _cached(wish, config)
    if folder is not None:
        check_signature(wish.entry, config, folder)
        logger.info("The files of %s are read in place from '%s'.", name, folder)
        return folder, None
    if config.network.is_offline:
        raise DownloadError(
            f"{name} is not stored in '{config.folder}', and --offline (MIM_OFFLINE) forbids downloads; run `mxext hub "
            "pull` where there is a network, and bring it here with `mxext hub export` and `import`.",
            cause=HubCause.OFFLINE,
        )
    if not downloading.is_allowed:
        raise NeedsDownloadError
    snapshot = pull(wish, config, downloading)
    return snapshot.folder, snapshot


def security_of(entry: ModelEntry, config: HubConfig) -> Security:
    """Returns what is asked of a model's files: flags count more than its manifest."""
    given = entry.security
    if config.allows_unsafe:
        given = replace(given, allow_pickle=True, trust_remote_code=True)
    if config.signature is not None:
        given = replace(given, signature=cast("SignatureRule", config.signature))
    return given


def _cached(wish: Wish, config: HubConfig) -> Path | None:
    """Returns the folder of another program's cache that has what is wanted; nothing that is pinned to other bytes."""
    if config.is_frozen:
        return None
    from vllm_mxext.hub.cached_files import has_files  # noqa: PLC0415 - what is stored does not need it

    security = security_of(wish.entry, config)
    return find_snapshot(
        wish.uris,
        wish.asked_revision,
        config.network.environ,
        lambda folder: has_files(folder, wish.artifact, security),
    )


def check_signature(entry: ModelEntry, config: HubConfig, folder: Path) -> None:
    """Verifies files of a model if that is asked for; what is here already as well: the rule may have been another one.

    Raises:
        UnsafeFileError: the rule is `require`, and there is no signature, or not a good one.
        MissingDependencyError: the rule is `require`, and the package is not installed.
    """
    security = security_of(entry, config)
    if security.signature != "off":
        from vllm_mxext.hub import signing  # noqa: PLC0415 - few ask for it

        signing.check_signature(entry.name, folder, security, is_offline=config.network.is_offline)


def pull(wish: Wish, config: HubConfig, downloading: Downloading) -> Snapshot:
    """Downloads what is not there yet and publishes it; asks the source even if a snapshot is stored.

    Raises:
        HubError: no source has it, the bytes are wrong, or they cannot be stored.
    """
    if not wish.uris:
        raise DownloadError(f"The manifest names no source of '{wish.entry.name}'; add one.", cause=HubCause.NOT_FOUND)
    from vllm_mxext.hub.network import Network  # noqa: PLC0415 - only downloads need it

    store = ModelStore(config.folder)
    store.blobs.read_only_roots = (CachedBlobs(hugging_face_folder(config.network.environ)),)
    work = _Pull(wish, config, store, downloading)
    failures: list[MxError] = []
    with Network(config.network) as network:
        for uri in wish.uris:
            downloading.listener(Progress(wish.entry.name, Phase.LISTING, detail=uri))
            try:
                return work.from_source(uri, network)
            except (DownloadError, ChecksumError, MissingDependencyError) as error:
                if isinstance(error, DownloadError) and error.cause in (HubCause.INTERRUPTED, HubCause.NOT_LOCKED):
                    raise
                failures.append(error)
                if len(wish.uris) > 1:
                    logger.warning("Source %s failed: %s", uri, error)
    if len(failures) == 1:
        raise failures[0]
    causes = {error.cause for error in failures if isinstance(error, (DownloadError, ChecksumError))}
    cause = causes.pop() if len(causes) == 1 else HubCause.FAILED
    each = "; ".join(f"{uri}: {str(error).removesuffix('.')}" for uri, error in zip(wish.uris, failures, strict=True))
    raise DownloadError(f"None of the sources of '{wish.entry.name}' could be used: {each}.", cause=cause)


@dataclass(frozen=True, slots=True)
class _Pull:
    """One pull, whatever the source."""

    wish: Wish
    config: HubConfig
    store: ModelStore
    downloading: Downloading

    def from_source(self, uri: str, network: Network) -> Snapshot:
        from vllm_mxext.hub.sources.opening import open_source  # noqa: PLC0415 - only downloads need it

        source = open_source(uri, self.wish.revision or None, network)
        try:
            listing = source.list_files()
            chosen = self._chosen(uri, listing)
            with self.store.adding("pull"):
                return self._fetched(source, listing, chosen)
        finally:
            source.close()

    def _chosen(self, uri: str, listing: Listing) -> tuple[RemoteFile, ...]:
        from vllm_mxext.hub.file_choice import choose_files  # noqa: PLC0415

        security = security_of(self.wish.entry, self.config)
        choose = partial(
            choose_files,
            uri,
            listing=listing,
            allows_pickle=security.allow_pickle,
            allows_code=security.trust_remote_code,
        )
        chosen = choose(self.wish.artifact)
        if security.signature != "off":  # it is of all files, those that nothing reads included
            there = {file.path for file in chosen}
            others = choose(replace(self.wish.artifact, files=(), include=("*",), exclude=()))
            chosen += tuple(file for file in others if file.path not in there)
        if self.config.is_frozen:
            from vllm_mxext.hub.store.lock_file import read_lock_file  # noqa: PLC0415

            pinned = read_lock_file(self.config.lock_file)
            return pinned.check(self.wish.store_name, replace(listing, files=chosen)).files
        return chosen

    def _fetched(self, source: Source, listing: Listing, chosen: Sequence[RemoteFile]) -> Snapshot:
        from vllm_mxext.hub.transfer.fetch import Wanted, fetch  # noqa: PLC0415

        name = self.wish.entry.name
        fetched = fetch(
            [Wanted(file, source) for file in chosen],
            self.store.blobs,
            self.config.network,
            model=name,
            listener=self.downloading.listener,
            stop=self.downloading.cancel,
        )
        total = sum(file.size for file in fetched)
        self.downloading.listener(
            Progress(name, Phase.PUBLISHING, total, total, len(fetched), len(fetched), detail=source.uri)
        )
        files = [StoredFile(file.path, file.size, file.sha256) for file in fetched]
        snapshot = self.store.publish(
            self.wish.store_name,
            listing.revision,
            source.uri,
            files,
            asked_revision=self.wish.asked_revision,
            check=self._check,
        )
        self.downloading.listener(
            Progress(name, Phase.DONE, total, total, len(fetched), len(fetched), detail=source.uri)
        )
        return snapshot

    def _check(self, folder: Path) -> None:
        """Refuses files that are not what their names say, or not signed as they have to be."""
        from vllm_mxext.hub.content_safety import check_content  # noqa: PLC0415

        security = security_of(self.wish.entry, self.config)
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                path = file.relative_to(folder).as_posix()
                check_content(file, path, allows_pickle=security.allow_pickle, allows_code=security.trust_remote_code)
        check_signature(self.wish.entry, self.config, folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Pulls what the flags of `mxext serve` describe; returns the exit code."""
    from vllm_mxext.config.app import parse_serve_args  # noqa: PLC0415
    from vllm_mxext.hub.exit_codes import exit_code  # noqa: PLC0415
    from vllm_mxext.hub.progress_display import display  # noqa: PLC0415
    from vllm_mxext.hub.startup import prepare  # noqa: PLC0415

    try:
        app = parse_serve_args(sys.argv[1:] if argv is None else argv, prog=PROG)
        with display() as listener:
            model = prepare(app, Downloading(listener)).app.model.model
        if model is None:
            raise ConfigError("Which model? Name it behind the command, or with MIM_MODEL_NAME.")
    except (MxError, KeyboardInterrupt) as error:
        sys.stderr.write(f"{PROG}: error: {error if str(error) else 'Interrupted; call it again to go on.'}\n")
        return exit_code(error)
    sys.stdout.write(f"{model}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
