"""Which form of message content a chat template expects, and bringing messages into it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import nodes

from vllm_mxext.config.frontend import ContentFormatName
from vllm_mxext.errors import InvalidRequestError, UnsupportedFeatureError

_TEXT_PART_TYPES = ("text", "input_text", "output_text", "refusal")


@dataclass(frozen=True, slots=True)
class ContentFormat:
    """What a template does with the content of messages.

    Attributes:
        takes_parts: it loops over the content, so a list of parts can be passed (vLLM calls this the openai format).
        tests_strings: it asks whether something is a string, so plain text can be passed too.
        knows_developer: it mentions the role `developer`.
    """

    takes_parts: bool
    tests_strings: bool
    knows_developer: bool

    def overridden(self, name: ContentFormatName) -> ContentFormat:
        """Returns the format that an operator or caller has asked for by name; `auto` is this one."""
        if name == "auto":
            return self
        return replace(self, takes_parts=name == "openai", tests_strings=name == "string")


def detect_content_format(template: nodes.Template) -> ContentFormat:
    """Reads the content format off a template's syntax tree."""
    return ContentFormat(
        takes_parts=_loops_over_content(template),
        tests_strings=any(test.name == "string" for test in template.find_all(nodes.Test)),
        knows_developer=any(const.value == "developer" for const in template.find_all(nodes.Const)),
    )


def _loops_over_content(template: nodes.Template) -> bool:
    """Whether a loop runs over `message.content`, directly, through a variable or inside a macro it is passed to."""
    aliases: set[str] = set()
    macros = {macro.name: macro for macro in template.find_all(nodes.Macro)}
    while True:
        found = set(aliases)
        for assign in template.find_all(nodes.Assign):
            if isinstance(assign.target, nodes.Name) and _is_content(assign.node, aliases):
                found.add(assign.target.name)
        for call in template.find_all(nodes.Call):
            macro = macros.get(call.node.name) if isinstance(call.node, nodes.Name) else None
            if macro is not None:
                passed = zip(macro.args, call.args, strict=False)
                found |= {parameter.name for parameter, value in passed if _is_content(value, aliases)}
        if found == aliases:
            break
        aliases = found
    return any(_is_content(loop.iter, aliases) for loop in template.find_all(nodes.For))


def _is_content(node: nodes.Node | None, aliases: set[str]) -> bool:
    """Whether an expression is the content of something, possibly sliced, filtered or chosen by a condition."""
    if isinstance(node, nodes.Getitem) and not isinstance(node.arg, nodes.Slice):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    if isinstance(node, (nodes.Getitem, nodes.Filter)):
        return _is_content(node.node, aliases)
    if isinstance(node, nodes.CondExpr):
        return _is_content(node.expr1, aliases) or _is_content(node.expr2, aliases)
    if isinstance(node, (nodes.Or, nodes.And)):
        return _is_content(node.left, aliases) or _is_content(node.right, aliases)
    is_alias = isinstance(node, nodes.Name) and node.name in aliases
    return is_alias or (isinstance(node, nodes.Getattr) and node.attr == "content")


def prepare_messages(messages: Sequence[Mapping[str, Any]], content_format: ContentFormat) -> list[dict[str, Any]]:
    """Returns fresh messages as the template expects them.

    Fields that are None are left out, as in transformers; `reasoning_content`, `thinking` and `reasoning` stand for
    each other; arguments of tool calls become objects; the role `developer` becomes `system` unless the template
    knows it.

    Raises:
        InvalidRequestError: a message or a content part is malformed.
        UnsupportedFeatureError: a content part is not text.
    """
    prepared = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InvalidRequestError(f"messages[{index}] must be an object, got {message!r}.", param="messages")
        fields = {name: value for name, value in message.items() if value is not None}
        if fields.get("role") == "developer" and not content_format.knows_developer:
            fields["role"] = "system"
        if "content" in fields:
            fields["content"] = _prepare_content(fields["content"], content_format, index)
        if "tool_calls" in fields:
            fields["tool_calls"] = [_prepare_tool_call(call) for call in fields["tool_calls"]]
            if not fields["tool_calls"]:
                del fields["tool_calls"]
        prepared.append(_with_reasoning_names(fields))
    return prepared


def _prepare_content(content: Any, content_format: ContentFormat, index: int) -> Any:
    if isinstance(content, str):
        if content_format.takes_parts and not content_format.tests_strings:
            return [{"type": "text", "text": content}]
        return content
    if not isinstance(content, Sequence):
        raise InvalidRequestError(
            f"The content of messages[{index}] must be a text or a list of parts, got {content!r}.", param="messages"
        )
    texts = [_part_text(part, index) for part in content]
    if content_format.takes_parts:
        return [{"type": "text", "text": text} for text in texts]
    return "\n".join(texts)


def _part_text(part: Any, index: int) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else None
    if kind is not None and kind not in _TEXT_PART_TYPES:
        raise UnsupportedFeatureError(
            f"messages[{index}] has a content part of type {kind!r}; this model takes text only.", param="messages"
        )
    text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, Mapping) else None
    if not isinstance(text, str):
        raise InvalidRequestError(
            f'The content parts of messages[{index}] must be like {{"type": "text", "text": "..."}}, got {part!r}.',
            param="messages",
        )
    return text


def _prepare_tool_call(call: Any) -> Any:
    if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
        return call
    function = dict(call["function"])
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    function["arguments"] = arguments if isinstance(arguments, Mapping) else {}
    return {**call, "function": function}


def _with_reasoning_names(message: dict[str, Any]) -> dict[str, Any]:
    names = ("reasoning_content", "thinking", "reasoning")
    reasoning = next((message[name] for name in names if name in message), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}
