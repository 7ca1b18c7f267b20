"""Listings of sources without commits: their revision is a digest of what is listed, and can be asked for again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from vllm_mxext.errors import DownloadError, HubCause
from vllm_mxext.hub.sources.interface import Listing, RemoteFile

_DIGEST_CHARACTERS = 16
_REVISION = re.compile(rf"(?P<name>.*)\+(?P<digest>[0-9a-f]{{{_DIGEST_CHARACTERS}}})")


def named_revision(revision: str | None, default: str) -> str:
    """Returns what to ask a source for, given a branch or a revision that `make_listing()` made of one."""
    match = _REVISION.fullmatch(revision or "")
    return (match["name"] if match else revision) or default


def digest_of(text: object) -> str | None:
    """Returns a SHA-256 as it is written here; None if the text is none."""
    digest = str(text).lower()
    return digest if re.fullmatch(r"[0-9a-f]{64}", digest) else None


def make_listing(
    what: str, files: Iterable[tuple[RemoteFile, str]], *, name: str, asked_revision: str | None
) -> Listing:
    """Returns a listing with the revision `NAME+DIGEST`.

    Args:
        what: is listed, for messages.
        files: with what tells their contents apart if they have no SHA-256.
        name: of the branch, or anything.
        asked_revision: if it has a digest, the files must be those.

    Raises:
        DownloadError: no files, or not those that were asked for.
    """
    ordered = sorted(files, key=lambda entry: entry[0].path)
    if not ordered:
        raise DownloadError(f"{what} has no files; check the address.", cause=HubCause.NOT_FOUND)
    lines = (f"{file.path}\0{file.size}\0{file.sha256 or mark}\n" for file, mark in ordered)
    digest = hashlib.sha256("".join(lines).encode(errors="surrogatepass")).hexdigest()[:_DIGEST_CHARACTERS]
    match = _REVISION.fullmatch(asked_revision or "")
    if match and match["digest"] != digest:
        raise DownloadError(
            f"{what} has changed: its files are not those of revision '{asked_revision}' any more; ask for another "
            "revision, or for none to take what is there.",
            cause=HubCause.NOT_FOUND,
        )
    return Listing(f"{name}+{digest}", tuple(file for file, _ in ordered))
