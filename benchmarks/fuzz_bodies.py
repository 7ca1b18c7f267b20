"""Random requests for fuzz.py: bodies, schemas, grammars, templates, unicode and sizes, right and wrong ones."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PATHS = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")
SCHEMA_KEYWORDS = (
    "type", "properties", "required", "items", "prefixItems", "enum", "const", "pattern", "format", "minLength",
    "maxLength", "minimum", "maximum", "multipleOf", "minItems", "maxItems", "uniqueItems", "anyOf", "oneOf", "allOf",
    "not", "if", "then", "else", "$ref", "$defs", "additionalProperties", "patternProperties", "propertyNames",
    "dependentRequired", "unevaluatedProperties", "contains",
)  # fmt: skip
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null", "nothing")
PIECES = (
    "a", " ", "\n", "\0", "\u202e", "\ufeff", "\U0001f600", "e\u0301", "\uffff", "北京", "<|im_start|>", "<s>", "</s>",
    "\\ud800", "{{", "}}", "{%", "%}", "'", '"', "\\", "\x7f",
)  # fmt: skip
REGEXES = ("(a+)+$", "[", "\\d{1,100000}", "(?=x)", "a{99999}", "(a|b)*c", "\\p{L}+", "x" * 5000, "(" * 500)
GRAMMARS = (
    'start: "a" start | ',
    "root ::= root",
    'start: "x"',
    "%%%",
    'root ::= "a"{1,99999}',
    "start: /(a+)+/ start",
)
FIELDS = (
    "model", "prompt", "messages", "n", "best_of", "max_tokens", "max_completion_tokens", "min_tokens", "temperature",
    "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed", "stop",
    "stop_token_ids", "logit_bias", "bad_words", "allowed_token_ids", "logprobs", "top_logprobs", "prompt_logprobs",
    "echo", "stream", "stream_options", "ignore_eos", "tools", "tool_choice", "response_format", "structured_outputs",
    "guided_json", "guided_regex", "guided_choice", "guided_grammar", "chat_template", "chat_template_kwargs",
    "documents", "cache_salt", "priority", "request_id", "timeout_ms", "t_max_predict_ms", "use_beam_search",
    "length_penalty", "early_stopping", "truncate_prompt_tokens", "suffix", "user", "tokens", "typical_p", "mirostat",
    "dry_multiplier", "xtc_probability", "thinking_token_budget", "vllm_xargs", "add_generation_prompt",
    "continue_final_message", "reasoning_effort", "logprob_token_ids", "repetition_detection", "stream_interval",
)  # fmt: skip


@dataclass(frozen=True)
class FuzzedRequest:
    """One request.

    Attributes:
        path: where it goes.
        content: its body.
        kind: how it was made.
    """

    path: str
    content: bytes
    kind: str


class Fuzzer:
    """Makes requests from random numbers.

    Args:
        randomness: where they come from.
        model: a served model.
    """

    def __init__(self, randomness: random.Random, model: str) -> None:
        self._random = randomness
        self._model = model

    def request(self) -> FuzzedRequest:
        """Returns the next request."""
        kinds: tuple[tuple[str, Callable[[], FuzzedRequest]], ...] = (
            ("fields", self._fields),
            ("schema", self._schema),
            ("grammar", self._grammar),
            ("template", self._template),
            ("unicode", self._unicode),
            ("size", self._size),
            ("bytes", self._bytes),
        )
        name, make = self._random.choice(kinds)
        made = make()
        return FuzzedRequest(made.path, made.content, name)

    def text(self, longest: int) -> str:
        """Returns random characters, some of them troublesome."""
        count = self._random.randint(0, longest)
        draw = self._random.random
        return "".join(
            self._random.choice(PIECES) if draw() < 0.5 else chr(self._random.randint(1, 0xD7FF)) for _ in range(count)
        )

    def value(self, depth: int = 3) -> Any:
        """Returns a random JSON value."""
        choose = self._random.choice
        kind = self._random.randint(0, 9 if depth else 6)
        if kind == 0:
            return choose([None, True, False])
        if kind <= 2:
            return choose([0, 1, -1, 2, 5, 2**31, -(2**63), 2**64, 10**30])
        if kind <= 4:
            return choose([0.0, 0.5, 1.0, -0.1, 1e308, 5e-324, 2.5])
        if kind <= 6:
            return self.text(12)
        if kind <= 8:
            return [self.value(depth - 1) for _ in range(self._random.randint(0, 4))]
        return {self.text(6): self.value(depth - 1) for _ in range(self._random.randint(0, 4))}

    def schema(self, depth: int = 4) -> Any:
        """Returns something like a JSON schema."""
        if not depth or self._random.random() < 0.1:
            return self.value(1)
        found: dict[str, Any] = {}
        for keyword in self._random.sample(SCHEMA_KEYWORDS, self._random.randint(0, 4)):
            if keyword == "type":
                found[keyword] = self._random.choice(TYPES)
            elif keyword in ("properties", "$defs", "patternProperties"):
                found[keyword] = {self.text(4): self.schema(depth - 1) for _ in range(self._random.randint(0, 3))}
            elif keyword in ("anyOf", "oneOf", "allOf", "prefixItems"):
                found[keyword] = [self.schema(depth - 1) for _ in range(self._random.randint(0, 3))]
            elif keyword in ("items", "not", "if", "then", "else", "additionalProperties", "contains", "propertyNames"):
                found[keyword] = self.schema(depth - 1)
            elif keyword == "pattern":
                found[keyword] = self._random.choice(REGEXES)
            elif keyword == "$ref":
                found[keyword] = self._random.choice(["#", "#/$defs/a", "http://x/y", "#/nowhere"])
            else:
                found[keyword] = self.value(1)
        return found

    def _valid(self, path: str) -> dict[str, Any]:
        text = self._random.choice(["2 + 3 =", "hello", "sort c a b", "北京"])
        body: dict[str, Any] = {"model": self._model, "max_tokens": self._random.randint(1, 8), "seed": 1}
        if path == "/detokenize":
            return {"model": self._model, "tokens": [1, 2, 3]}
        if path == "/tokenize":
            return {"model": self._model, "prompt": text}
        if path == "/v1/completions":
            return body | {"prompt": text}
        return body | {"messages": [{"role": "user", "content": text}]}

    def _made(self, path: str, body: dict[str, Any]) -> FuzzedRequest:
        return FuzzedRequest(path, json.dumps(body).encode(), "")

    def _fields(self) -> FuzzedRequest:
        path = self._random.choice(PATHS)
        body = self._valid(path)
        for _ in range(self._random.randint(1, 3)):
            body[self._random.choice(FIELDS)] = self.value()
        return self._made(path, body)

    def _schema(self) -> FuzzedRequest:
        path = self._random.choice(PATHS[:2])
        schema = self.schema()
        field: dict[str, Any] = self._random.choice(
            [
                {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
                {"guided_json": schema},
                {"structured_outputs": {"json": schema}},
                {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}]},
            ]
        )
        return self._made(path, self._valid(path) | field)

    def _grammar(self) -> FuzzedRequest:
        path = self._random.choice(PATHS[:2])
        regex, grammar = self._random.choice(REGEXES), self._random.choice(GRAMMARS)
        field: dict[str, Any] = self._random.choice(
            [
                {"guided_regex": regex},
                {"guided_grammar": grammar},
                {"structured_outputs": {"regex": regex}},
                {"structured_outputs": {"grammar": grammar + self.text(10)}},
                {"structured_outputs": {"choice": [self.text(5) for _ in range(self._random.randint(0, 5))]}},
                {"structured_outputs": {"regex": regex, "grammar": grammar}},
            ]
        )
        return self._made(path, self._valid(path) | field)

    def _template(self) -> FuzzedRequest:
        path = self._random.choice(("/v1/chat/completions", "/tokenize"))
        templates = (
            "{% for i in range(10**9) %}x{% endfor %}",
            "{{ ''.__class__ }}",
            "{{ messages[9].x }}",
            "{% if",
            "",
        )
        body = {
            "model": self._model,
            "messages": [
                {"role": self._random.choice(["user", "system", "tool", self.text(3)]), "content": self.value(2)}
                for _ in range(self._random.randint(0, 4))
            ],
            "max_tokens": 4,
            **self._random.choice(
                [
                    {"chat_template": self._random.choice(templates)},
                    {"chat_template_kwargs": {self.text(4): self.value(2)}},
                    {"continue_final_message": True, "add_generation_prompt": False},
                    {"documents": self.value(2)},
                ]
            ),
        }
        return self._made(path, body)

    def _unicode(self) -> FuzzedRequest:
        path = self._random.choice(PATHS[:3])
        body = self._valid(path)
        text = self.text(60)
        if "messages" in body:
            body["messages"] = [{"role": "user", "content": text}]
        else:
            body["prompt"] = text
        if self._random.random() < 0.5:
            body["stop"] = [self.text(3)]
        return self._made(path, body)

    def _size(self) -> FuzzedRequest:
        path = self._random.choice(PATHS[:3])
        body = self._valid(path)
        count = self._random.choice([200, 3000, 60_000])
        body |= self._random.choice(
            [
                {"prompt": "a " * count},
                {"messages": [{"role": "user", "content": "x" * count}]},
                {"stop": ["s"] * count},
                {"stop_token_ids": list(range(count))},
                {"prompt": [1] * count},
                {"prompt": ["p"] * count},
                {"user": "u" * count},
                {"logit_bias": {str(i): 1 for i in range(count)}},
            ]
        )
        return self._made(path, body)

    def _bytes(self) -> FuzzedRequest:
        path = self._random.choice(PATHS)
        whole = json.dumps(self._valid(path)).encode()
        position = self._random.randint(0, len(whole))
        content = self._random.choice(
            [
                whole[:position],
                whole[:position] + bytes([self._random.randint(0, 255)]) + whole[position:],
                b"[" * 5000,
                b'{"a":' * 3000,
                b"",
                b"null",
                b"\xff\xfe",
                b'{"prompt": "\\ud800"}',
                b'{"prompt": "a", "prompt": "b", "max_tokens": 1e400}',
                b"NaN",
            ]
        )
        return FuzzedRequest(path, content, "")
