"""Whatever is drawn under the constraints on tool calls is read by the format's parser and fits the tools' schemas."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import jsonschema_rs
import numpy as np
import pytest

from tests.unit.parsing.examples import FRAGMENTS
from vllm_mxext.constraint_params import StructuredOutputsParams
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.native.structured.call_arguments import STYLES
from vllm_mxext.native.structured.compilation import compile_grammar
from vllm_mxext.native.structured.grammar import grammar_text
from vllm_mxext.native.structured.keywords import FORMATS
from vllm_mxext.native.structured.matcher import GrammarMatcher
from vllm_mxext.native.structured.vocabulary import make_vocabulary
from vllm_mxext.parsing.chain import ParsedMessage, parse
from vllm_mxext.parsing.events import ParserContext
from vllm_mxext.parsing.registry import TOOL_PARSERS, ToolParserEntry
from vllm_mxext.server.openai.forced_calls import forced_calls, strict_calls
from vllm_mxext.server.openai.tool_protocol import Tool

pytestmark = pytest.mark.promise("TOOL-4")

SCHEMA = {
    "type": "object",
    "$defs": {"size": {"enum": ["small", "very large"]}},
    "properties": {
        "city": {"type": "string"},
        "code": {"type": "string", "pattern": "^[A-Z]{2}-\\d{1,3}$"},
        "note": {"anyOf": [{"type": "string", "maxLength": 9}, {"type": "null"}], "description": "of any kind"},
        "days": {"type": "integer", "minimum": 2, "maximum": 50},
        "share": {"type": "number"},
        "metric": {"type": "boolean"},
        "level": {"enum": [1, 2.5, None, True, "high", "1", "None"]},
        "mark": {"type": ["string", "integer", "boolean", "object"]},
        "hours": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3},
        "limits": {
            "type": "object",
            "properties": {"low": {"type": "number"}, "names": {"type": "array", "items": {"type": "boolean"}}},
            "required": ["low"],
            "additionalProperties": False,
        },
        "day": {"type": "string", "format": "date"},
        "size": {"$ref": "#/$defs/size"},
    },
    "required": ["city", "note", "limits"],
    "additionalProperties": False,
}
TOOLS = [
    Tool.model_validate({"function": {"name": "get_weather", "parameters": SCHEMA, "strict": True}}),
    Tool.model_validate({"function": {"name": "get_time", "strict": True}}),
    Tool.model_validate({"function": {"name": "f", "parameters": {"type": "object"}}}),
]
FUNCTIONS = {
    tool.function.name: {"name": tool.function.name, "parameters": tool.function.schema_of_arguments} for tool in TOOLS
}
CASES = [
    pytest.param(entry, is_special, id=f"{entry.name}-{'special' if is_special else 'text'}")
    for entry in TOOL_PARSERS
    for is_special in (False, True)
    if is_special or not entry.reads_reasoning  # messages need marks that are no text
]
LIMIT, LAST_LIMIT = 200, 900
CLOSINGS = tuple("\"'}])>0")


class PieceTokenizer(FakeTokenizer):
    """Bytes, and the pieces of a format as text or as special tokens."""

    def __init__(self, pieces: Sequence[str], *, is_special: bool) -> None:
        self.pieces = list(dict.fromkeys(pieces))
        self._is_special = is_special

    @property
    def vocab_size(self) -> int:
        return self.SIZE + len(self.pieces)

    @property
    def special_token_ids(self) -> frozenset[int]:
        return super().special_token_ids | (frozenset(range(self.SIZE, self.vocab_size)) if self._is_special else set())

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id - self.SIZE].encode() if token_id >= self.SIZE else super().token_bytes(token_id)


def markers_of(entry: ToolParserEntry) -> list[str]:
    """Pieces of a format that are tokens of their own in models' vocabularies."""
    return [piece for piece in FRAGMENTS[entry.name] if piece[0] in "<[" and piece[-1] in ">]" and "=" not in piece]


def tokenizer_of(entry: ToolParserEntry, *, is_special: bool) -> PieceTokenizer:
    if is_special:
        return PieceTokenizer([piece for piece in markers_of(entry) if len(piece) > 2], is_special=True)
    form, closings = entry.format, []
    if form is not None:
        closings = [form.end, form.answer, "<|end|>"]
        closings += [STYLES[form.style].after_value] if form.style in STYLES else []
    pieces = (*FRAGMENTS[entry.name], *FRAGMENTS["any"], "null", '{"a": ', *closings)
    return PieceTokenizer([piece for piece in pieces if piece], is_special=False)


class Sampler:
    """Draws texts at random that a constraint lets through, with a liking for the pieces of a format."""

    def __init__(self, constraint: Any, tokenizer: PieceTokenizer) -> None:
        size = tokenizer.vocab_size
        vocabulary = make_vocabulary(tokenizer, size, [tokenizer.EOS])
        params = StructuredOutputsParams(structural_tag=constraint)
        self._matcher = compile_grammar(grammar_text(params, vocabulary.special_tokens, [tokenizer.EOS]), vocabulary)
        self._tokenizer = tokenizer
        ends = [index for index, piece in enumerate(tokenizer.pieces) if "/" in piece or "end" in piece]
        self._closings = {*map(ord, CLOSINGS), *(tokenizer.SIZE + index for index in ends)}

    def draw(self, seed: int) -> str | None:
        """A whole output; None if it has become too long."""
        matcher, chance, taken = self._matcher.copy(), random.Random(seed), list[int]()
        while len(taken) < LAST_LIMIT:
            if matcher.is_complete:
                break
            token_id = self._next(matcher, chance, is_long=len(taken) > LIMIT)
            if token_id == FakeTokenizer.EOS:
                break
            matcher.accept([token_id])
            taken.append(token_id)
        else:
            return None
        assert matcher.is_accepting
        return b"".join(map(self._tokenizer.token_bytes, taken)).decode()

    def _next(self, matcher: GrammarMatcher, chance: random.Random, *, is_long: bool) -> int:
        bits = np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")[: self._tokenizer.vocab_size]
        allowed = np.flatnonzero(bits).tolist()
        assert allowed, "nothing can follow"
        ends = [one for one in allowed if one == FakeTokenizer.EOS]
        if ends and (is_long or chance.random() < 0.1):
            return FakeTokenizer.EOS
        closings = [one for one in allowed if one in self._closings]
        if is_long and closings and chance.random() < 0.6:
            return chance.choice(closings)
        if is_long and ord("\n") in allowed and chance.random() < 0.1:
            return ord("\n")
        pieces = [one for one in allowed if one >= FakeTokenizer.SIZE]
        if pieces and chance.random() < 0.5:
            return chance.choice(pieces)
        plain = [one for one in allowed if one < 0x7F and not (is_long and chr(one) in " \t\r")] or allowed
        letters = [one for one in plain if chr(one).isalnum()]
        return chance.choice(letters if letters and chance.random() < 0.4 else plain)


def read(entry: ToolParserEntry, text: str) -> ParsedMessage:
    return parse(entry.create(ParserContext(FUNCTIONS)), text)


def finite(number: str) -> float:
    """A number as a float, of those beyond all floats the nearest one."""
    return min(max(float(number), -1e308), 1e308)


def check_calls(message: ParsedMessage, text: str) -> None:
    for call in message.calls:
        arguments = json.loads(call.arguments, parse_float=finite)
        tool = next((tool for tool in TOOLS if tool.function.name == call.name), None)
        assert tool is not None, text
        if tool.function.strict:
            jsonschema_rs.validate(tool.function.schema_of_arguments, arguments)


@pytest.mark.parametrize(("entry", "is_special"), CASES)
def test_forced_calls_of_any_content_are_read_and_fit(entry: ToolParserEntry, is_special: bool) -> None:
    assert entry.format is not None
    constraint = forced_calls(TOOLS[:2], entry.format, 2)
    sampler = Sampler(constraint.structural_tag, tokenizer_of(entry, is_special=is_special))

    texts = [text for seed in range(6) if (text := sampler.draw(seed)) is not None]

    assert len(texts) >= 4
    for text in texts:
        message = read(entry, text)
        assert message.calls, text
        assert not message.content or entry.format.thoughts, text
        check_calls(message, text)


@pytest.mark.parametrize(("entry", "is_special"), CASES)
def test_whatever_is_read_as_a_call_of_a_strict_tool_fits(entry: ToolParserEntry, is_special: bool) -> None:
    assert entry.format is not None
    constraint = strict_calls(TOOLS, entry.format)
    sampler = Sampler(constraint.structural_tag, tokenizer_of(entry, is_special=is_special))

    texts = [text for seed in range(8) if (text := sampler.draw(seed)) is not None]

    assert len(texts) >= 6
    for text in texts:
        check_calls(read(entry, text), text)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "unknown"])
def test_strings_without_quotes_have_their_formats(name: str) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "format": name}}, "required": ["x"]}
    tool = Tool.model_validate({"function": {"name": "f", "parameters": schema}})
    entry = next(entry for entry in TOOL_PARSERS if entry.name == "qwen3_coder")
    assert entry.format is not None
    sampler = Sampler(forced_calls([tool], entry.format, 1).structural_tag, tokenizer_of(entry, is_special=False))
    context = ParserContext({"f": {"name": "f", "parameters": schema}})

    texts = [text for seed in range(10) if (text := sampler.draw(seed)) is not None]

    assert len(texts) >= 8
    for text in texts:
        [call] = parse(entry.create(context), text).calls
        jsonschema_rs.validate(schema, json.loads(call.arguments), validate_formats=True)
