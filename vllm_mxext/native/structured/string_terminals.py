"""Strings that stand bare or between delimiters, as regular expressions that hold them to their schema."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.native.structured.lark_rules import alternatives, lark_regex, lark_string
from vllm_mxext.native.structured.schema_leaves import Leaf

_ANY = "(.|\\n)*"
_SPACE = "[ \\t\\r\\n]*"
_READ_AS = {
    "null": "(?i:null|none)",
    "boolean": "(?i:true|false)",
    "integer": "[-+]?[0-9]+(\\.0*)?",
    "number": "[-+]?([0-9]+\\.?[0-9]*|\\.[0-9]+)([eE][-+]?[0-9]+)?",
    "bounded number": f"[-+.0-9]{_ANY}",
    "object": f"\\{{{_ANY}",
    "array": f"\\[{_ANY}",
}
"""Type -> bare texts that a parser takes for it, white space apart."""

_HOUR = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|[-+]([01][0-9]|2[0-3]):[0-5][0-9])"
_DATE = (
    "[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
)
_LABEL = "[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?"
_HOST = f"{_LABEL}(\\.{_LABEL}){{0,3}}"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_GROUP = "[0-9a-fA-F]{1,4}"
_FORMATS = {
    "date": _DATE,
    "time": _HOUR,
    "date-time": f"{_DATE}T{_HOUR}",
    "email": f"[A-Za-z0-9_]{{1,31}}([-+.][A-Za-z0-9_]{{1,10}}){{0,3}}@{_HOST}",
    "hostname": _HOST,
    "ipv4": f"{_BYTE}(\\.{_BYTE}){{3}}",
    "ipv6": f"{_GROUP}(:{_GROUP}){{7}}|({_GROUP}(:{_GROUP}){{0,2}})?::({_GROUP}(:{_GROUP}){{0,2}})?",
    "duration": "P([0-9]{1,4}[YMWD]|([0-9]{1,4}D)?T([0-9]{1,4}H([0-9]{1,2}M)?|[0-9]{1,4}M([0-9]{1,2}S)?|[0-9]{1,4}S))",
    "uuid": "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "uri": f"[a-z][-+.a-z0-9]*://{_HOST}(:[0-9]{{1,4}})?(/[-A-Za-z0-9._~]*)*(\\?[-A-Za-z0-9._~=&]*)?(#[-A-Za-z0-9._~]*)?",
}
"""Formats -> the plain ones of their values."""

_CLASSES = {"d": "[0-9]", "D": "[^0-9]", "w": "[0-9A-Za-z_]", "W": "[^0-9A-Za-z_]"}
"""Classes of ASCII in JSON Schema, and of Unicode in llguidance; within brackets too they can stand as brackets."""


def string_terminal(
    leaf: Leaf, *, forbidden: Iterable[str], is_trimmed: bool = False, unlike: Iterable[str] = ()
) -> str | None:
    """Returns the body of a Lark terminal of strings that fit a schema; None if there are none.

    Args:
        leaf: the schema.
        forbidden: texts that they cannot contain.
        is_trimmed: they cannot begin or end with a line break.
        unlike: types for which a parser must not take them.

    Raises:
        InvalidRequestError: the schema has what cannot be enforced here.
    """
    excluded = [f"{_ANY}({alternatives(forbidden)}){_ANY}", *(f"{_SPACE}{_READ_AS[one]}{_SPACE}" for one in unlike)]
    if is_trimmed:
        excluded += [f"\\n{_ANY}", f"{_ANY}\\n"]
    parts = [f"/{_ANY}/"]
    if leaf.values is not None:
        values = [one for one in leaf.values if not any(re.fullmatch(pattern, one) for pattern in excluded)]
        if not values:
            return None
        parts, excluded = [f"({' | '.join(map(lark_string, values))})"], []
    lowest, highest = leaf.schema.get("minLength", 0), leaf.schema.get("maxLength", "")
    if lowest or highest != "":
        parts.append(f"/(.|\\n){{{lowest},{highest}}}/")
    if "pattern" in leaf.schema:
        parts.append(_found(leaf.schema["pattern"]))
    if "format" in leaf.schema:
        parts.append(lark_regex(_format(leaf.schema["format"])))
    return " & ".join([*parts, *(f"~/{pattern}/" for pattern in excluded)])


def _found(pattern: object) -> str:
    """Returns the texts in which a pattern is found."""
    if not isinstance(pattern, str):
        raise _invalid("has a pattern that is not a text")
    body = re.sub(r"\\(.)", lambda match: _CLASSES.get(match[1], match[0]), pattern, flags=re.DOTALL)
    is_start = body.startswith("^")
    is_end = body.endswith("$") and not re.search(r"(?<!\\)(\\\\)*\\\$$", body)
    body = body[is_start : len(body) - is_end]
    if (is_start or is_end) and _has_open_choice(body):
        raise _invalid(f"has the pattern {pattern[:40]!r}; put brackets around what stands between ^ and $")
    return lark_regex(f"{'' if is_start else _ANY}({body}){'' if is_end else _ANY}")


def _has_open_choice(pattern: str) -> bool:
    """Whether a `|` stands outside of brackets."""
    bare = re.sub(r"\\.|\[\^?\]?(\\.|[^\]\\])*\]", "", pattern, flags=re.DOTALL)
    depth = 0
    for char in bare:
        depth += (char == "(") - (char == ")")
        if char == "|" and not depth:
            return True
    return False


def _format(name: object) -> str:
    if not isinstance(name, str) or name not in _FORMATS:
        raise _invalid(f"has the format {str(name)[:40]!r}; use pattern, or one of {', '.join(_FORMATS)}")
    return _FORMATS[name]


def _invalid(rule: str) -> InvalidRequestError:
    return InvalidRequestError(f"A string that this model writes without quotes {rule}.", param="structured_outputs")
