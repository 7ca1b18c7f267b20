"""Structural tags, in xgrammar's old and new form, as Lark grammars."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.native.structured.call_arguments import STYLES, ArgumentWriter, SchemaText
from vllm_mxext.native.structured.lark_rules import LarkRules, lark_regex

_FREE_TEXT = ("excludes", "excluded_beginnings")


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
        self._rules = LarkRules(special_tokens, end_token_ids)

    def write(self, tag: Any) -> str:
        """Returns the grammar.

        Raises:
            InvalidRequestError: the tag is malformed, or has a format that is not supported.
        """
        if not isinstance(tag, dict):
            raise _invalid("must be a JSON object")
        start = self._format(_modern(tag), is_last=True)
        return self._rules.write(start)

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
        return self._rules.literal(_text(value, "value")) or '""'

    def _json_schema(self, value: dict[str, Any], _: bool) -> str:
        if "json_schema" not in value:
            raise _invalid("has a json_schema format without json_schema")
        style = value.get("style", "json")
        if style == "json":
            return self._rules.rule(f"%json {self._schema_text(value['json_schema'])}")
        if not isinstance(style, str) or style not in STYLES:
            raise _invalid(f"has the style {style!r}; these are supported: json, {', '.join(STYLES)}")
        return ArgumentWriter(self._rules, self._schema_text, STYLES[style]).write(value["json_schema"])

    def _any_text(self, value: dict[str, Any], is_last: bool) -> str:
        if not is_last:
            raise _invalid("has any_text before something else; put it into a tag, or at the end")
        return self._rules.rule(self._free_text(value))

    def _free_text(self, value: dict[str, Any]) -> str:
        """Returns the terminal of any text but what a format excludes."""
        others = value.keys() - {"type", *_FREE_TEXT}
        if value["type"] == "any_text" and others:
            raise _invalid(f"has any_text with {', '.join(sorted(others))}, which is not supported")
        return self._rules.text(*(_texts(value, field) for field in _FREE_TEXT))

    def _regex(self, value: dict[str, Any], _: bool) -> str:
        return self._rules.rule(lark_regex(_text(value, "pattern")))

    def _sequence(self, value: dict[str, Any], is_last: bool) -> str:
        elements = _list(value, "elements")
        last = len(elements) - 1
        parts = [self._format(inner, is_last=is_last and index == last) for index, inner in enumerate(elements)]
        return self._rules.rule(" ".join(parts))

    def _or(self, value: dict[str, Any], is_last: bool) -> str:
        options = [self._format(inner, is_last=is_last) for inner in _list(value, "elements")]
        return self._rules.rule(" | ".join(options))

    def _tag(self, value: dict[str, Any], is_last: bool) -> str:
        return self._rules.rule(f"{self._rules.literal(_text(value, 'begin'))} {self._content(value, is_last)}".strip())

    def _content(self, value: dict[str, Any], is_last: bool) -> str:
        """Returns what follows a tag's beginning: content and end."""
        content, end = value.get("content"), _text(value, "end")
        if isinstance(content, dict) and content.get("type") == "any_text" and end:
            return self._rules.until(self._free_text(content), end)
        inner = self._format(content, is_last=is_last and not end)
        return f"{inner} {self._rules.literal(end)}".strip()

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
            rest = f"{self._rules.literal(begin[len(trigger) :])} {self._content(tag, False)}"
            branches.setdefault(trigger, []).append(self._rules.rule(rest.strip()))
        if not is_last:
            raise _invalid("has triggered_tags before something else; put them at the end")
        text = self._free_text(value)
        calls = [f"{self._rules.until(text, trigger)} ({' | '.join(rules)})" for trigger, rules in branches.items()]
        call = self._rules.rule(" | ".join(calls))
        at_least_one, stop_after_first = _flag(value, "at_least_one"), _flag(value, "stop_after_first")
        # special tokens that concern no trigger, such as those of reasoning, may stand in the text
        others = self._rules.tokens_beside([*_texts(value, "triggers"), *_texts(value, "excludes")])
        noise = f"{self._rules.rule(f'{text} <[{chr(44).join(map(str, others))}]>')}*" if others else ""
        if stop_after_first:
            return self._rules.rule(f"{noise} {call}" if at_least_one else f"{noise} ({call} | {text})")
        more = f"{noise} ({call} {noise})"
        return self._rules.rule(f"{more}{'+' if at_least_one else '*'} {self._rules.rule(text)}")

    def _tags_with_separator(self, value: dict[str, Any], _: bool) -> str:
        tags = [self._tag(tag, False) for tag in _list(value, "tags") if isinstance(tag, dict)]
        if len(tags) != len(value["tags"]):
            raise _invalid("has a tag that is not an object")
        one = self._rules.rule(" | ".join(tags))
        separator = self._rules.literal(_text(value, "separator"))
        more = "" if _flag(value, "stop_after_first") else f" ({separator} {one})*"
        return self._rules.rule(f"{one}{more}" if _flag(value, "at_least_one") else f"({one}{more})?")


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


def _texts(value: Mapping[str, Any], field: str) -> list[str]:
    texts = value.get(field, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise _invalid(f"needs {field} to be a list of texts that are not empty")
    return texts


def _flag(value: Mapping[str, Any], field: str) -> bool:
    flag = value.get(field, False)
    if not isinstance(flag, bool):
        raise _invalid(f"needs {field} to be true or false")
    return flag


def _invalid(rule: str) -> InvalidRequestError:
    return InvalidRequestError(f"The structural tag {rule}.", param="structured_outputs")
