"""Writes docs/json_schema.md by running every keyword on examples: `python docs/make_schema_table.py`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_mxext.constraint_params import StructuredOutputsParams
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.errors import GenerationError, InvalidRequestError
from vllm_mxext.native.structured.compilation import compile_grammar
from vllm_mxext.native.structured.grammar import DEFAULT_WHITESPACE, grammar_text
from vllm_mxext.native.structured.keywords import ANNOTATIONS, ENFORCED, FORMATS, NEUTRAL, REFUSED
from vllm_mxext.native.structured.vocabulary import Vocabulary, make_vocabulary

TARGET = Path(__file__).parent / "json_schema.md"

KEYWORDS_2020_12 = (
    # core
    "$anchor", "$comment", "$defs", "$dynamicAnchor", "$dynamicRef", "$id", "$ref", "$schema", "$vocabulary",
    # applicator
    "additionalProperties", "allOf", "anyOf", "contains", "dependentSchemas", "else", "if", "items", "not", "oneOf",
    "patternProperties", "prefixItems", "properties", "propertyNames", "then",
    # unevaluated
    "unevaluatedItems", "unevaluatedProperties",
    # validation
    "const", "dependentRequired", "enum", "exclusiveMaximum", "exclusiveMinimum", "maxContains", "maxItems",
    "maxLength", "maxProperties", "maximum", "minContains", "minItems", "minLength", "minProperties", "minimum",
    "multipleOf", "pattern", "required", "type", "uniqueItems",
    # format, content, meta-data
    "format", "contentEncoding", "contentMediaType", "contentSchema", "default", "deprecated", "description",
    "examples", "readOnly", "title", "writeOnly",
)  # fmt: skip
"""Every keyword of JSON Schema 2020-12."""

_INTEGER = {"type": "integer"}
_PAIR = [{"type": "string"}, _INTEGER]

Example = tuple[Any, str, str]
"""Schema, text of a value that fits, text of one that does not."""

EXAMPLES: dict[str, Example] = {
    "$anchor": ({"$defs": {"n": {"$anchor": "n", **_INTEGER}}, "$ref": "#n"}, "1", '"a"'),
    "$defs": ({"$defs": {"n": _INTEGER}, "$ref": "#/$defs/n"}, "1", '"a"'),
    "$id": ({"$id": "https://x.y/a", "$defs": {"n": {"$id": "n", **_INTEGER}}, "$ref": "n"}, "1", '"a"'),
    "$ref": ({"properties": {"a": {"$ref": "#"}}, "additionalProperties": False}, '{"a":{"a":{}}}', '{"a":{"b":1}}'),
    "$schema": ({"$schema": "https://json-schema.org/draft/2020-12/schema", **_INTEGER}, "1", '"a"'),
    "additionalItems": ({"items": [_INTEGER], "additionalItems": False}, "[1]", "[1,2]"),
    "additionalProperties": ({"type": "object", "additionalProperties": _INTEGER}, '{"a":1}', '{"a":"b"}'),
    "allOf": ({"allOf": [_INTEGER, {"minimum": 3}]}, "3", "2"),
    "anyOf": ({"anyOf": _PAIR}, '"a"', "true"),
    "const": ({"const": {"a": [1]}}, '{"a":[1]}', '{"a":[2]}'),
    "definitions": ({"definitions": {"n": _INTEGER}, "$ref": "#/definitions/n"}, "1", '"a"'),
    "enum": ({"enum": ["a", 1, None]}, "null", "2"),
    "exclusiveMaximum": ({"type": "number", "exclusiveMaximum": 3}, "2.9", "3"),
    "exclusiveMinimum": ({"type": "number", "exclusiveMinimum": 3}, "3.1", "3"),
    "format": ({"type": "string", "format": "date"}, '"2024-02-29"', '"tomorrow"'),
    "id": ({"id": "https://x.y/a", **_INTEGER}, "1", '"a"'),
    "items": ({"type": "array", "items": _INTEGER}, "[1,2]", '["a"]'),
    "maxItems": ({"type": "array", "maxItems": 1}, "[1]", "[1,2]"),
    "maxLength": ({"type": "string", "maxLength": 2}, '"ab"', '"abc"'),
    "maxProperties": ({"type": "object", "maxProperties": 1}, '{"a":1}', '{"a":1,"b":2}'),
    "maximum": ({"type": "number", "maximum": 3}, "3", "3.1"),
    "minItems": ({"type": "array", "minItems": 2}, "[1,2]", "[1]"),
    "minLength": ({"type": "string", "minLength": 2}, '"ab"', '"a"'),
    "minProperties": ({"type": "object", "minProperties": 1}, '{"a":1}', "{}"),
    "minimum": ({"type": "number", "minimum": 3}, "3", "2.9"),
    "multipleOf": ({"type": "integer", "multipleOf": 3}, "6", "7"),
    "oneOf": ({"oneOf": _PAIR}, '"a"', "true"),
    "pattern": ({"type": "string", "pattern": "^a+$"}, '"aa"', '"ab"'),
    "patternProperties": ({"type": "object", "patternProperties": {"^n": _INTEGER}}, '{"n1":1}', '{"n1":"a"}'),
    "prefixItems": ({"type": "array", "prefixItems": _PAIR}, '["a",1]', "[1]"),
    "properties": ({"type": "object", "properties": {"a": _INTEGER}}, '{"a":1}', '{"a":"b"}'),
    "required": ({"type": "object", "required": ["a"]}, '{"a":1}', "{}"),
    "type": ({"type": ["integer", "null"]}, "null", '"a"'),
}
"""Enforced keyword -> example."""

FORMAT_EXAMPLES = {
    "date-time": ("2024-02-29T12:00:00Z", "2024-02-29"),
    "time": ("12:00:00Z", "noon"),
    "date": ("2024-02-29", "2024-02-32"),
    "duration": ("P1DT2H", "a day"),
    "email": ("a@b.cd", "a"),
    "hostname": ("a.example", "-"),
    "ipv4": ("127.0.0.1", "127.0.0.256"),
    "ipv6": ("::1", "1"),
    "uuid": ("123e4567-e89b-12d3-a456-426614174000", "123"),
    "uri": ("https://x.y/z", "z"),
}
"""Value of `format` -> a text that fits, one that does not."""

INTRODUCTION = f"""\
# JSON Schema in structured output

<!-- Written by docs/make_schema_table.py, which runs every example; a test keeps it in step. -->

What becomes of each keyword of JSON Schema 2020-12, and of some others that people use. Nothing is ignored silently: a
keyword is enforced, is an annotation by its definition, or makes the request a 400 that says where it stands and what
to do. That holds for unknown keywords too, such as misspelt ones; names beginning with `x-` are annotations.

Output is a subset of what the schema allows:

- Properties come in the order in which the schema names them, additional ones last. A name may come twice among the
  additional ones.
- Optional whitespace is `{DEFAULT_WHITESPACE}` at each place, or what `whitespace_pattern` says; with
  `disable_any_whitespace` there is none.
- Numbers in `const` and `enum` are written as in the schema.

Some uses of an enforced keyword cannot be expressed, and are refused with the reason: `oneOf` whose options are not
plainly exclusive, references to other documents, look-around in `pattern`, overlapping `patternProperties`,
`minProperties` and `maxProperties` beside optional `properties`, and schemas that nothing fits.
"""


def render() -> str:
    """Returns the whole page; fails if an example is not treated as the page would say."""
    return "".join(_parts())


def _parts() -> Iterator[str]:
    vocabulary = make_vocabulary(FakeTokenizer(), FakeTokenizer.SIZE, [FakeTokenizer.EOS])
    missing = [name for name in KEYWORDS_2020_12 if name not in ENFORCED | ANNOTATIONS | REFUSED.keys()]
    assert not missing, f"Say what becomes of {missing}."
    yield INTRODUCTION
    yield "\n## Enforced\n\n| keyword | schema | accepted | rejected |\n|---|---|---|---|\n"
    for keyword in sorted(ENFORCED, key=str.lower):
        schema, valid, invalid = EXAMPLES[keyword]
        _check_enforced(schema, valid, invalid, vocabulary)
        yield f"| `{keyword}` | {_code(json.dumps(schema))} | {_code(valid)} | {_code(invalid)} |\n"
    yield "\n### Values of `format`\n\n`unknown` allows any text; all others than these are refused.\n\n"
    yield "| format | accepted | rejected |\n|---|---|---|\n"
    for name in FORMATS:
        if name in FORMAT_EXAMPLES:
            valid, invalid = FORMAT_EXAMPLES[name]
            _check_enforced({"type": "string", "format": name}, f'"{valid}"', f'"{invalid}"', vocabulary)
            yield f"| `{name}` | {_code(valid)} | {_code(invalid)} |\n"
    yield "\n## Annotations\n\nThey say nothing about which values are valid: "
    yield ", ".join(f"`{name}`" for name in sorted(ANNOTATIONS)) + ".\n"
    for name in sorted(ANNOTATIONS):
        _check_enforced({"type": "integer", name: "x"}, "1", '"a"', vocabulary)
    yield "\n## Refused\n\n| keyword | reason and remedy | accepted as |\n|---|---|---|\n"
    for name in sorted(REFUSED, key=str.lower):
        _check_refused({name: {}}, name)
        neutral = ""
        if name in NEUTRAL:
            neutral = json.dumps(NEUTRAL[name])
            _check_enforced({"type": "integer", name: NEUTRAL[name]}, "1", '"a"', vocabulary)
        yield f"| `{name}` | {REFUSED[name].replace('|', chr(92) + '|')} | {_code(neutral) if neutral else ''} |\n"


def fits(schema: Any, text: str, vocabulary: Vocabulary) -> bool:
    """Whether a text is a whole output under a schema."""
    matcher = compile_grammar(grammar_text(StructuredOutputsParams(json=schema), {}), vocabulary)
    try:
        matcher.accept(list(text.encode()))
    except GenerationError:
        return False
    return matcher.is_accepting


def _check_enforced(schema: Any, valid: str, invalid: str, vocabulary: Vocabulary) -> None:
    assert fits(schema, valid, vocabulary), f"{schema} does not let {valid} through."
    assert not fits(schema, invalid, vocabulary), f"{schema} lets {invalid} through."


def _check_refused(schema: Any, keyword: str) -> None:
    reason = ""
    try:
        grammar_text(StructuredOutputsParams(json=schema), {})
    except InvalidRequestError as error:
        reason = str(error)
    assert keyword in reason, f"{keyword} is not refused by name."


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"{TARGET}\n")
