"""`Node`: a YAML file as plain values that know their lines; nothing of the file is executed, and its size is bounded.

Scalars follow YAML 1.2's core schema (`yes` and `12:30` are text). Aliases and `<<` count as what they expand to.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_mxext.hub.manifest.complaints import Complaint, refuse

MAX_BYTES = 4 * 2**20
MAX_NODES = 200_000
MAX_DEPTH = 24
"""Larger files are refused; the largest manifests of others have some 20,000 nodes."""

_MERGE_KEY = "<<"
_STANDARD_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset(_STANDARD_TAG + name for name in ("str", "int", "float", "bool", "null", "seq", "map"))
_WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(("false", "False", "FALSE"), False)
_INTEGER = re.compile(r"[-+]?[0-9]{1,30}\Z")
_OTHER_INTEGER = re.compile(r"0(?:x[0-9a-fA-F]{1,16}|o[0-7]{1,20})\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]{1,30}|[0-9]{1,30}(?:\.[0-9]{0,30})?)(?:[eE][-+]?[0-9]{1,5})?\Z")


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it is.

    Attributes:
        value: a scalar, a list of nodes, or a mapping of text to nodes.
        line: of its beginning, from 1.
        key_lines: of a mapping: the lines of its keys.
        tag: a tag of its own, such as `!name`; empty = none.
        num_nodes: it and all below it, aliases expanded.
        height: levels below it, aliases expanded.
    """

    value: Any
    line: int
    key_lines: dict[str, int] | None = None
    tag: str = ""
    num_nodes: int = 1
    height: int = 0

    @property
    def fields(self) -> dict[str, Node]:
        """What a mapping holds; empty for anything else."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> list[Node]:
        """What a list holds; empty for anything else."""
        return self.value if isinstance(self.value, list) else []

    def plain(self) -> Any:
        """Returns the value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def at(self, path: Sequence[str | int]) -> Node:
        """Returns the node at a path; an empty one in the line of the last that is there if it is not."""
        node = self
        for part in path:
            if isinstance(part, int) and part < len(node.items):
                node = node.items[part]
            elif isinstance(part, str) and part in node.fields:
                node = node.fields[part]
            else:
                return Node(None, node.line)
        return node

    def line_of(self, path: Sequence[str | int]) -> int:
        """Returns the line of what a path names: of the key in a mapping, of the value in a list."""
        if path and isinstance(path[-1], str):
            holder = self.at(path[:-1])
            return (holder.key_lines or {}).get(path[-1], holder.line)
        return self.at(path).line

    def tags(self) -> Iterator[Node]:
        """Yields the nodes that have a tag of their own."""
        if self.tag:
            yield self
        for node in (*self.fields.values(), *self.items):
            yield from node.tags()


def make(value: Any, line: int) -> Node:
    """Returns plain values as nodes of one line; nodes among them stay as they are."""
    if isinstance(value, Node):
        return value
    if isinstance(value, dict):
        fields = {key: make(entry, line) for key, entry in value.items()}
        return Node(fields, line, {key: node.line for key, node in fields.items()})
    if isinstance(value, (list, tuple)):
        return Node([make(entry, line) for entry in value], line)
    return Node(value, line)


def load(path: Path) -> Node:
    """Reads a YAML file.

    Raises:
        ManifestError: it cannot be read, is not YAML, or is larger or deeper than a manifest can be.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise refuse(str(path), [Complaint(1, f"The file cannot be read: {error.strerror}.")]) from None
    return parse(content, str(path))


def parse(content: bytes, name: str) -> Node:
    """Reads YAML.

    Args:
        content: the file's bytes.
        name: of the file, for messages.

    Raises:
        ManifestError: it is not YAML, or is larger or deeper than a manifest can be.
    """
    import yaml  # noqa: PLC0415 - only those who read a manifest pay for it

    if len(content) > MAX_BYTES:
        raise refuse(name, [Complaint(1, f"The file is larger than {MAX_BYTES // 2**20} MiB, which no manifest is.")])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise refuse(name, [Complaint(line, "The file is not UTF-8 text.")]) from None
    events = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    try:
        return _Composer(events).document()
    except _RefusedError as error:
        raise refuse(name, [error.complaint]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(str(error.problem or error.context or "it cannot be parsed").split())
        line = mark.line + 1 if mark is not None else 1
        raise refuse(name, [Complaint(line, f"This is not valid YAML: {reason}.")]) from None
    except yaml.YAMLError as error:
        reason = getattr(error, "reason", "it cannot be parsed")
        line = text.count("\n", 0, max(0, getattr(error, "position", 0))) + 1
        raise refuse(name, [Complaint(line, f"This is not valid YAML: {reason}.")]) from None


class _RefusedError(Exception):
    """What is wrong with the file, and where."""

    def __init__(self, line: int, sentence: str) -> None:
        super().__init__(sentence)
        self.complaint = Complaint(line, sentence)


class _Composer:
    """Makes nodes of a parser's events, which come one by one: a bomb is refused before it is in memory."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events
        self._anchors: dict[str, Node] = {}
        self._num_nodes = 0

    def document(self) -> Node:
        """Returns the root of the only document."""
        import yaml  # noqa: PLC0415

        root = None
        for event in self._events:
            line = event.start_mark.line + 1
            if isinstance(event, yaml.DocumentStartEvent) and root is not None:
                raise _RefusedError(line, "A second document begins here; a manifest is one.")
            if isinstance(event, yaml.NodeEvent):
                root = self._node(event, 0)
        if root is None or root.value is None:
            raise _RefusedError(1, "The file is empty; a manifest begins with 'schema: mx.hub/v1'.")
        return root

    def _node(self, event: Any, depth: int) -> Node:
        import yaml  # noqa: PLC0415

        line, anchor = event.start_mark.line + 1, str(event.anchor or "")
        alias = self._anchors.get(anchor) if isinstance(event, yaml.AliasEvent) else None
        if depth + (alias.height if alias is not None else 0) > MAX_DEPTH:
            raise _RefusedError(line, f"This is nested more than {MAX_DEPTH} levels deep, which no manifest is.")
        self._count(alias.num_nodes if alias is not None else 1, line)
        if isinstance(event, yaml.AliasEvent):
            if alias is None:
                raise _RefusedError(line, f"The alias *{anchor[:100]} has no anchor before it.")
            return alias
        if isinstance(event, yaml.ScalarEvent):
            node = Node(_scalar(event, line), line, tag=_own_tag(event, line))
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(event, line, depth)
        else:
            node = self._mapping(event, line, depth)
        if anchor:
            self._anchors[anchor] = node
        return node

    def _count(self, number: int, line: int) -> None:
        self._num_nodes += number
        if self._num_nodes > MAX_NODES:
            raise _RefusedError(line, f"The file has more than {MAX_NODES:,} values, aliases expanded.")

    def _sequence(self, start: Any, line: int, depth: int) -> Node:
        import yaml  # noqa: PLC0415

        items = []
        for event in self._events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            items.append(self._node(event, depth + 1))
        return Node(items, line, None, _own_tag(start, line), *_extent(items))

    def _mapping(self, start: Any, line: int, depth: int) -> Node:
        import yaml  # noqa: PLC0415

        fields: dict[str, Node] = {}
        lines: dict[str, int] = {}
        merged: list[Node] = []
        for event in self._events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key_line = event.start_mark.line + 1
            if not isinstance(event, yaml.ScalarEvent):
                raise _RefusedError(key_line, "A key is a list, a mapping or an alias; keys are text.")
            self._count(1, key_line)
            key, value = _text(event, key_line), self._node(next(self._events), depth + 1)
            if key == _MERGE_KEY and event.implicit[0]:
                merged += value.items or [value]
            elif key in fields:
                raise _RefusedError(
                    key_line, f"The key '{key[:100]}' is here twice; the first is in line {lines[key]}."
                )
            else:
                fields[key], lines[key] = value, key_line
        for node in merged:
            if not isinstance(node.value, dict):
                raise _RefusedError(line, "<< merges something that is not a mapping.")
            for key, value in node.fields.items():
                if key not in fields:
                    self._count(value.num_nodes, line)
                    fields[key], lines[key] = value, (node.key_lines or {}).get(key, line)
        return Node(fields, line, lines, _own_tag(start, line), *_extent(fields.values()))


def _extent(children: Collection[Node]) -> tuple[int, int]:
    """Returns how many nodes and levels something with these children has."""
    return 1 + sum(node.num_nodes for node in children), 1 + max((node.height for node in children), default=0)


def _own_tag(event: Any, line: int) -> str:
    tag = event.tag or ""
    if tag in _PLAIN_TAGS or tag == "!":
        return ""
    if tag.startswith(_STANDARD_TAG):
        raise _RefusedError(line, f"The tag !!{tag[len(_STANDARD_TAG) :][:100]} is not allowed in a manifest.")
    return str(tag)


def _text(event: Any, line: int) -> str:
    text = str(event.value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _RefusedError(line, "This text has half of a surrogate pair, which is no character.") from None
    return text


def _scalar(event: Any, line: int) -> Any:
    """Returns what a scalar stands for; numbers that no machine holds stay text."""
    text = _text(event, line)
    is_text = event.style or event.tag in ("!", _STANDARD_TAG + "str")  # quoted, a block, or said to be text
    if is_text or (event.tag and event.tag not in _PLAIN_TAGS):
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.match(text) or _OTHER_INTEGER.match(text):
        return int(text, 0 if text[:2] in ("0x", "0o") else 10)
    number = float(text) if _FLOAT.match(text) else math.inf
    return number if math.isfinite(number) else text
