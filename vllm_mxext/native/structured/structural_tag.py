"""Structural tags, in xgrammar's old and new form, as Lark grammars."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from vllm_mxext.errors import InvalidRequestError

SchemaText = Callable[[Any], str]
"""Checks a JSON schema and writes it with its whitespace options, for `%json`."""

_MAX_RULES = 2_000
_ANY_TEXT = "TEXT"


class TagGrammar:
    """Writes the Lark grammar of one structural tag.

    Args:
        schema_text: checks and writes the schemas inside.
        special_tokens: text -> id of tokens that are not text; where a literal contains one, the token is meant.
        end_token_ids: those of them that end an output.
    """

    def __init__(
        self, schema_text: SchemaText, special_tokens: Mapping[str, int], end_token_ids: Collection[int] = ()
    ) -> None:
        self._schema_text = schema_text
        self._special_tokens = special_tokens
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._rules: list[str] = []
        self._end_ids = frozenset(end_token_ids)

    def write(self, tag: Any) -> str:
        """Returns the grammar.

        Raises:
            InvalidRequestError: the tag is malformed, or has a format that is not supported.
        """
        if not isinstance(tag, dict):
            raise _invalid("must be a JSON object")
        start = self._format(_modern(tag), is_last=True)
        return "\n".join([f"start: {start}", "TEXT: /(.|\\n)*/", *self._rules, ""])

    def _format(self, value: Any, *, is_last: bool) -> str:
        """Returns the expression of a format; `is_last` says that nothing follows it."""
        if not isinstance(value, dict):
            raise _invalid("has a format that is not an object")
        writers: dict[Any, Callable[[dict[str, Any], bool], str]] = {
            "const_string": self._const_string,
            "json_schema": self._json_schema,
            "any_text": self._any_text,
            "regex": self._regex,
            "sequence": self._sequence,
            "or": self._or,
            "tag": self._tag,
            "triggered_tags": self._triggered_tags,
            "tags_with_separator": self._tags_with_separator,
        }
        kind = value.get("type")
        if not isinstance(kind, str) or kind not in writers:
            raise _invalid(f"has a format of type {kind!r}; these are supported: {', '.join(writers)}")
        return writers[kind](value, is_last)

    def _const_string(self, value: dict[str, Any], _: bool) -> str:
        return self._literal(_text(value, "value")) or '""'

    def _json_schema(self, value: dict[str, Any], _: bool) -> str:
        if "json_schema" not in value:
            raise _invalid("has a json_schema format without json_schema")
        return self._rule(f"%json {self._schema_text(value['json_schema'])}")

    def _any_text(self, value: dict[str, Any], is_last: bool) -> str:
        if value.keys() - {"type"}:
            raise _invalid(f"has any_text with {', '.join(sorted(value.keys() - {'type'}))}, which is not supported")
        if not is_last:
            raise _invalid("has any_text before something else; put it into a tag, or at the end")
        return self._rule(_ANY_TEXT)

    def _regex(self, value: dict[str, Any], _: bool) -> str:
        pattern = _text(value, "pattern")
        return self._rule(f"/{_escaped(pattern)}/")

    def _sequence(self, value: dict[str, Any], is_last: bool) -> str:
        elements = _list(value, "elements")
        last = len(elements) - 1
        parts = [self._format(inner, is_last=is_last and index == last) for index, inner in enumerate(elements)]
        return self._rule(" ".join(parts))

    def _or(self, value: dict[str, Any], is_last: bool) -> str:
        options = [self._format(inner, is_last=is_last) for inner in _list(value, "elements")]
        return self._rule(" | ".join(options))

    def _tag(self, value: dict[str, Any], is_last: bool) -> str:
        return self._rule(f"{self._literal(_text(value, 'begin'))} {self._content(value, is_last)}".strip())

    def _content(self, value: dict[str, Any], is_last: bool) -> str:
        """Returns what follows a tag's beginning: content and end."""
        content, end = value.get("content"), _text(value, "end")
        if isinstance(content, dict) and content.get("type") == "any_text" and end:
            if content.keys() - {"type"}:
                return self._any_text(content, True)
            return self._text_until(end)
        inner = self._format(content, is_last=is_last and not end)
        return f"{inner} {self._literal(end)}".strip()

    def _triggered_tags(self, value: dict[str, Any], is_last: bool) -> str:
        triggers, tags = _list(value, "triggers"), _list(value, "tags")
        branches: dict[str, list[str]] = {}
        for tag in tags:
            if not isinstance(tag, dict):
                raise _invalid("has a tag that is not an object")
            begin = _text(tag, "begin")
            trigger = next((one for one in triggers if isinstance(one, str) and one and begin.startswith(one)), None)
            if trigger is None:
                raise _invalid(f"has the tag {begin[:40]!r}, which begins with none of its triggers")
            rest = f"{self._literal(begin[len(trigger) :])} {self._content(tag, False)}"
            branches.setdefault(trigger, []).append(self._rule(rest.strip()))
        if not is_last:
            raise _invalid("has triggered_tags before something else; put them at the end")
        calls = [f"{self._text_until(trigger)} ({' | '.join(rules)})" for trigger, rules in branches.items()]
        call = self._rule(" | ".join(calls))
        at_least_one, stop_after_first = _flag(value, "at_least_one"), _flag(value, "stop_after_first")
        noise = self._noise(triggers)
        if stop_after_first:
            return self._rule(f"{noise} {call}" if at_least_one else f"{noise} ({call} | {_ANY_TEXT})")
        more = f"{noise} ({call} {noise})"
        return self._rule(f"{more}{'+' if at_least_one else '*'} {self._rule(_ANY_TEXT)}")

    def _noise(self, triggers: list[Any]) -> str:
        """Returns the expression of text with special tokens that concern no trigger, such as those of reasoning."""
        text = "".join(trigger for trigger in triggers if isinstance(trigger, str))
        used = {match.group() for match in self._special.finditer(text)} if self._special else set()
        others = [one for name, one in self._special_tokens.items() if name not in used and one not in self._end_ids]
        if not others:
            return ""
        return f"{self._rule(f'{_ANY_TEXT} <[{chr(44).join(map(str, sorted(others)))}]>')}*"

    def _tags_with_separator(self, value: dict[str, Any], _: bool) -> str:
        tags = [self._tag(tag, False) for tag in _list(value, "tags") if isinstance(tag, dict)]
        if len(tags) != len(value["tags"]):
            raise _invalid("has a tag that is not an object")
        one = self._rule(" | ".join(tags))
        separator = self._literal(_text(value, "separator"))
        more = "" if _flag(value, "stop_after_first") else f" ({separator} {one})*"
        return self._rule(f"{one}{more}" if _flag(value, "at_least_one") else f"({one}{more})?")

    def _text_until(self, end: str) -> str:
        """Returns a rule of any text up to and including `end`."""
        match = self._special.search(end) if self._special else None
        if match is None:
            return self._rule(f"{_ANY_TEXT} {_quoted(end)}", "[lazy]")
        if match.start():
            raise _invalid(f"has {end[:40]!r}, in which text comes before the special token {match.group()}")
        return self._rule(f"{_ANY_TEXT} {self._literal(end)}")

    def _literal(self, text: str) -> str:
        """Returns the expression of a text, in which special tokens stand for themselves.

        Tokens that end an output are left out: they may come where the grammar can end, and nothing follows them.
        """
        parts, position = [], 0
        for match in self._special.finditer(text) if self._special else ():
            token_id = self._special_tokens[match.group()]
            parts += [_quoted(text[position : match.start()]), "" if token_id in self._end_ids else f"<[{token_id}]>"]
            position = match.end()
        parts.append(_quoted(text[position:]))
        return " ".join(part for part in parts if part)

    def _rule(self, body: str, options: str = "") -> str:
        if len(self._rules) == _MAX_RULES:
            raise _invalid("is too large; make it smaller")
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{options}: {body}")
        return name


def _modern(tag: dict[str, Any]) -> Any:
    """Returns the format of a tag; the old form (`structures`, `triggers`) is one of triggered tags."""
    if "format" in tag:
        return tag["format"]
    if "structures" not in tag or "triggers" not in tag:
        raise _invalid("must have `format`, or `structures` and `triggers`")
    tags = []
    for structure in _list(tag, "structures"):
        if not isinstance(structure, dict) or "schema" not in structure:
            raise _invalid("has a structure without schema")
        content = {"type": "json_schema", "json_schema": structure["schema"]}
        tags.append({"begin": structure.get("begin"), "content": content, "end": structure.get("end")})
    return {"type": "triggered_tags", "triggers": tag["triggers"], "tags": tags}


def lark_string(text: str) -> str:
    """Writes a text as a Lark string."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")


def _quoted(text: str) -> str:
    return lark_string(text) if text else ""


def _escaped(pattern: str) -> str:
    """Writes a regular expression so that it can stand between slashes."""
    return re.sub(
        r"\\.|/|\n", lambda match: {"/": r"\/", "\n": r"\n"}.get(match[0], match[0]), pattern, flags=re.DOTALL
    )


def _text(value: Mapping[str, Any], field: str) -> str:
    text = value.get(field)
    if not isinstance(text, str):
        raise _invalid(f"needs {field} to be a text, got {text!r}"[:120])
    return text


def _list(value: Mapping[str, Any], field: str) -> list[Any]:
    items = value.get(field)
    if not isinstance(items, list) or not items:
        raise _invalid(f"needs {field} to be a list that is not empty")
    return items


def _flag(value: Mapping[str, Any], field: str) -> bool:
    flag = value.get(field, False)
    if not isinstance(flag, bool):
        raise _invalid(f"needs {field} to be true or false")
    return flag


def _invalid(rule: str) -> InvalidRequestError:
    return InvalidRequestError(f"The structural tag {rule}.", param="structured_outputs")
