"""Names of models and revisions as names of files, one to one."""

from __future__ import annotations

import hashlib
import re
import urllib.parse

CURRENT = "current"
REFS = "refs"
_MAX_LENGTH = 120


def model_folder(name: str) -> str:
    """Returns `org--name` for `org/name`; what would be ambiguous or is no plain file name is written as `%XX`."""
    return _bounded("--".join(_quoted(part) for part in name.split("/")), name)


def revision_folder(revision: str) -> str:
    """Returns a revision as a file name; never one that the store uses for something else."""
    text = _bounded(_quoted(revision), revision)
    return f"%{ord(text[0]):02X}{text[1:]}" if text.lower() in (CURRENT, REFS) else text


def _quoted(part: str) -> str:
    """Leaves letters, digits, `_`, `.` and single `-` in the middle, so that `--` and `~` are the store's own."""
    text = urllib.parse.quote(part, safe="", errors="surrogatepass").replace("~", "%7E") or "%"
    return re.sub(r"^\.", "%2E", re.sub(r"-(?=-)|^-|-$", "%2D", text))


def _bounded(text: str, name: str) -> str:
    if len(text) <= _MAX_LENGTH:
        return text
    return f"{text[: _MAX_LENGTH - 20]}%{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:16]}"
