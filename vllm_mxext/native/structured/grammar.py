"""From `StructuredOutputsParams` to one normalised grammar text, which front and core compile to the same automaton."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import gbnf_to_lark

from vllm_mxext.constraint_params import StructuredOutputsParams
from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.native.structured.json_schema import checked_schema, parse_json
from vllm_mxext.native.structured.lark_rules import lark_string
from vllm_mxext.native.structured.structural_tag import TagGrammar

DEFAULT_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,64}"
"""Optional whitespace in JSON; bounded, so that a model cannot go on with it for ever."""

_MAX_GRAMMAR_RULES = 2_000
_MAX_GRAMMAR_NESTING = 200
_JSON_BLOCK = re.compile(r"%json\s*(?=[{\[\"tfn\d])")
_RULE_NAME = re.compile(r"[ \t]*[\w?!.-]")
_RULE_OPTION = re.compile(r"^[ \t]*[\w?!-]+\s*\[[^\]\n]*\b(temperature|max_tokens|stop)\b", re.MULTILINE)


def grammar_text(
    params: StructuredOutputsParams, special_tokens: Mapping[str, int], end_token_ids: Collection[int] = ()
) -> str:
    """Returns what `LLMatcher` compiles; the checks that need no automaton have been made.

    Args:
        params: the constraint.
        special_tokens: text -> id of tokens that are not text, for structural tags.
        end_token_ids: those of them that end an output.

    Raises:
        InvalidRequestError: the constraint is malformed or asks for what cannot be enforced.
    """
    name = params.constraint
    try:
        if name == "json_object":
            return _json_grammar({"type": "object"}, params)
        if name == "json":
            return _json_grammar(params.json, params)
        if name == "regex":
            return LLMatcher.grammar_from_regex(_checked_text(params.regex or "", "regex"))
        if name == "choice":
            return _choice_grammar(params.choice or ())
        if name == "grammar":
            return LLMatcher.grammar_from_lark(_checked_lark(params.grammar or ""))
        return _tag_grammar(params, special_tokens, end_token_ids)
    except UnicodeEncodeError:
        raise _invalid(f"{name} has an unpaired surrogate; send valid Unicode.") from None
    except RecursionError:
        raise _invalid(f"{name} is nested too deeply; make it flatter.") from None


def _json_grammar(schema: Any, params: StructuredOutputsParams) -> str:
    text = _schema_text(schema, params)
    try:
        return LLMatcher.grammar_from_json_schema(text)
    except ValueError as error:
        raise _invalid(f"The JSON schema cannot be read: {error}.") from None


def _schema_text(schema: Any, params: StructuredOutputsParams) -> str:
    """Writes a checked schema with its whitespace options."""
    checked = checked_schema(schema, disable_additional_properties=params.disable_additional_properties)
    if params.disable_any_whitespace:
        options: dict[str, Any] = {"whitespace_flexible": False}
    else:
        options = {"whitespace_pattern": _whitespace(params.whitespace_pattern)}
    return _checked_text(json.dumps(checked | {"x-guidance": options}, ensure_ascii=False), "json")


def _whitespace(pattern: str | None) -> str:
    if pattern is None:
        return DEFAULT_WHITESPACE
    return pattern.replace("\n", r"\n").replace("\t", r"\t")


def _choice_grammar(choices: tuple[str, ...]) -> str:
    texts = " | ".join(lark_string(_checked_text(text, "choice")) for text in choices)
    return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {texts}\n")


def _tag_grammar(
    params: StructuredOutputsParams, special_tokens: Mapping[str, int], end_token_ids: Collection[int]
) -> str:
    tag = params.structural_tag
    if isinstance(tag, str):
        tag = parse_json(tag, "The structural tag")
    writer = TagGrammar(lambda schema: _schema_text(schema, params), special_tokens, end_token_ids)
    return LLMatcher.grammar_from_lark(_checked_text(writer.write(tag), "structural_tag"))


def _checked_lark(text: str) -> str:
    """Returns a grammar in Lark's form, in which every inline schema has been checked."""
    _checked_text(text, "grammar")
    _check_extent(text)
    if _is_gbnf(text):
        try:
            text = gbnf_to_lark(_with_long_escapes(text))
        except Exception as error:  # the converter raises bare Exception too
            raise _invalid(f"The grammar cannot be read as GBNF: {error}.") from None
    option = _RULE_OPTION.search(text)
    if option is not None:
        raise _invalid(f"Rule option '{option[1]}' in the grammar is not supported; leave it out.")
    return _with_checked_schemas(text)


def _is_gbnf(text: str) -> bool:
    """Whether rules are written with `::=`, comments aside."""
    lines = (re.sub(r"(#|//).*$", "", line) for line in text.split("\n"))
    return any("::=" in line for line in lines)


def _with_long_escapes(text: str) -> str:
    r"""Writes `\u0041` and the like out as characters, which the converter garbles."""

    def character(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]
        code = int(match[1][1:], 16)
        is_plain = code > 0x7F and code <= 0x10FFFF and not 0xD800 <= code < 0xE000
        return chr(code) if is_plain else f"\\x{code:02X}" if code <= 0x7F else match[0]

    return re.sub(r"\\(u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8})|\\.", character, text)


def _check_extent(text: str) -> None:
    depth = deepest = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    if deepest > _MAX_GRAMMAR_NESTING:
        raise _invalid(f"The grammar is nested more than {_MAX_GRAMMAR_NESTING} levels deep; make it flatter.")
    num_rules = sum(_RULE_NAME.match(line) is not None and ":" in line for line in text.split("\n"))
    if num_rules > _MAX_GRAMMAR_RULES:
        raise _invalid(f"The grammar has more than {_MAX_GRAMMAR_RULES} rules; make it smaller.")


def _with_checked_schemas(text: str) -> str:
    parts, position, decoder = [], 0, json.JSONDecoder()
    while (match := _JSON_BLOCK.search(text, position)) is not None:
        try:
            schema, end = decoder.raw_decode(text, match.end())
        except ValueError:
            break  # llguidance says what is wrong
        parse_json(text[match.end() : end], "A JSON schema in the grammar")
        options = {"x-guidance": {"whitespace_pattern": DEFAULT_WHITESPACE}}
        checked = json.dumps(checked_schema(schema) | options, ensure_ascii=False)
        parts += [text[position : match.end()], checked]
        position = end
    return "".join([*parts, text[position:]])


def _checked_text(text: str, what: str) -> str:
    text.encode()
    if "\0" in text:
        raise _invalid(f"{what} must not contain a NUL character.")
    return text


def _invalid(message: str) -> InvalidRequestError:
    return InvalidRequestError(message[:1].upper() + message[1:], param="structured_outputs")
