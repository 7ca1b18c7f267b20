"""Holds chat templates that imitate the published families against `apply_chat_template` of transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import processors
from transformers import AutoTokenizer

from tests.unit.tokenizer.families import byte_level_bpe, save
from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.tokenizer.hf_tokenizer import HfTokenizer
from vllm_mxext.tokenizer.loading import load_tokenizer

FOLDER = Path(__file__).parent / "chat_templates"
BOS = "<|begin|>"

TAKE_PARTS = frozenset({"gemma3", "glm4_5", "kimi_k2", "llama4", "minimax", "mistral_tekken", "smolvlm"})
"""Families whose templates loop over content."""

TAKE_PARTS_ONLY = frozenset({"smolvlm"})
"""Those of them that know no plain text."""

KNOW_DEVELOPER = frozenset({"gpt_oss"})
"""Families with a role `developer` of their own."""

Message = dict[str, Any]

SYSTEM: Message = {"role": "system", "content": "Antworte <b>kurz</b> & 'höflich'. "}
USER: Message = {"role": "user", "content": "你好 {{ 1 + 1 }} 😀\n"}
ASSISTANT: Message = {"role": "assistant", "content": "Hello  there \n"}
DEVELOPER: Message = {"role": "developer", "content": "be brief"}
THOUGHTS: Message = {"role": "assistant", "content": "yes", "reasoning_content": "hm\nhm"}
TAGGED_THOUGHTS: Message = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"}
IN_PARTS: Message = {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}


def _call(name: str, arguments: Mapping[str, Any], call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": dict(arguments)}}


WEATHER = _call("weather", {"city": 'Zürich "x"', "days": [1, None], "metric": True}, "abcdef001")
CLOCK = _call("clock", {}, "abcdef002")
CALLING: Message = {"role": "assistant", "content": "", "tool_calls": [WEATHER]}
CALLING_TWICE: Message = {"role": "assistant", "content": "Let me see.", "tool_calls": [WEATHER, CLOCK]}
RESULT: Message = {"role": "tool", "name": "weather", "tool_call_id": "abcdef001", "content": '{"sky": "größer <x>"}'}
RESULT_2: Message = {"role": "tool", "name": "clock", "tool_call_id": "abcdef002", "content": "12:30"}
CITY = {"city": {"type": "string", "description": "größer <x>"}, "days": {"type": "array", "items": {"type": "number"}}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather.",
            "parameters": {"type": "object", "properties": CITY, "required": ["city"]},
        },
    },
    {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}},
]
DOCUMENTS = [{"title": "One", "text": "first"}, {"title": "Two", "text": "zweiter <x>"}]


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation and the variables of its template."""

    messages: tuple[Message, ...]
    variables: dict[str, Any] = field(default_factory=dict)
    is_prompted: bool = True
    is_continued: bool = False


CONVERSATIONS: dict[str, Conversation] = {
    "question": Conversation((USER,)),
    "system": Conversation((SYSTEM, USER)),
    "developer": Conversation((DEVELOPER, USER)),
    "three turns": Conversation((USER, ASSISTANT, USER)),
    "no prompt": Conversation((SYSTEM, USER, ASSISTANT), is_prompted=False),
    "continued": Conversation((USER, ASSISTANT), is_prompted=False, is_continued=True),
    "parts": Conversation((IN_PARTS, ASSISTANT, IN_PARTS)),
    "tools": Conversation((SYSTEM, USER), {"tools": TOOLS}),
    "tools without system": Conversation((USER,), {"tools": TOOLS}),
    "call": Conversation((USER, CALLING, RESULT), {"tools": TOOLS}),
    "answered call": Conversation((SYSTEM, USER, CALLING, RESULT, ASSISTANT, USER), {"tools": TOOLS}),
    "two calls": Conversation((USER, CALLING_TWICE, RESULT, RESULT_2, ASSISTANT, USER), {"tools": TOOLS}),
    "reasoning": Conversation((USER, THOUGHTS, USER)),
    "reasoning at the end": Conversation((USER, THOUGHTS), is_prompted=False),
    "tagged reasoning": Conversation((USER, TAGGED_THOUGHTS, USER)),
    "without thinking": Conversation((USER,), {"enable_thinking": False}),
    "effort": Conversation((USER,), {"reasoning_effort": "high", "thinking": True}),
    "documents": Conversation((USER,), {"documents": DOCUMENTS}),
    "empty list of calls": Conversation((USER, ASSISTANT | {"tool_calls": []}, USER)),
}


@dataclass(slots=True)
class Comparison:
    """How one template compares over all conversations.

    Attributes:
        name: of the template.
        is_parts: content is given to it as parts.
        num_equal: conversations that both render to the same text and tokens.
        num_refused: conversations that both refuse.
        num_bos: most BOS tokens at the beginning of a prompt.
        differences: what is not equal.
    """

    name: str
    is_parts: bool = False
    num_equal: int = 0
    num_refused: int = 0
    num_bos: int = 0
    differences: list[str] = field(default_factory=list)


def template_names() -> list[str]:
    """Returns the names of all templates."""
    return sorted(path.stem for path in FOLDER.glob("*.jinja"))


def source_of(name: str) -> str:
    """Returns a template."""
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


class Conformance:
    """Ours and transformers' tokenizer of one checkpoint, which puts BOS before plain text.

    Args:
        folder: where to write the checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        backend = byte_level_bpe()
        backend.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)]),
        ])  # fmt: skip
        config: dict[str, object] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": "<|im_end|>",
        }
        save(folder, backend, config)
        self.ours: HfTokenizer = load_tokenizer(folder)
        self.theirs: Any = AutoTokenizer.from_pretrained(folder)

    def compare(self, name: str) -> Comparison:
        """Renders every conversation with both."""
        source = source_of(name)
        comparison = Comparison(name)
        comparison.is_parts = name in TAKE_PARTS
        for title, conversation in CONVERSATIONS.items():
            expected = self._expected(name, source, conversation)
            text = self._rendered(source, conversation)
            if expected is None or text is None:
                is_equal = expected is None and text is None
                comparison.num_refused += is_equal
            else:
                is_equal = (text, self.ours.encode(text, add_special_tokens=False)) == expected
                comparison.num_equal += is_equal
                comparison.num_bos = max(comparison.num_bos, _num_bos(text))
            if not is_equal:
                comparison.differences.append(f"{title}: {text!r} instead of {expected!r}")
        return comparison

    def _rendered(self, source: str, conversation: Conversation) -> str | None:
        messages = [_as_sent(message) for message in conversation.messages]
        try:
            return self.ours.apply_chat_template(
                messages,
                add_generation_prompt=conversation.is_prompted,
                continue_final_message=conversation.is_continued,
                chat_template=source,
                template_kwargs=conversation.variables,
            )
        except InvalidRequestError:
            return None

    def _expected(self, name: str, source: str, conversation: Conversation) -> tuple[str, list[int]] | None:
        arguments: dict[str, Any] = {
            "add_generation_prompt": conversation.is_prompted,
            "continue_final_message": conversation.is_continued,
            "chat_template": source,
            **conversation.variables,
        }
        messages = list(_as_transformers_needs(name, conversation.messages))
        try:
            text = self.theirs.apply_chat_template(messages, tokenize=False, **arguments)
            return text, self.theirs.apply_chat_template(messages, tokenize=True, **arguments)["input_ids"]
        except (jinja2.TemplateError, ValueError, TypeError):
            return None


def _as_sent(message: Message) -> Message:
    """A message as clients send it: arguments of calls are text."""
    if not message.get("tool_calls"):
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _as_transformers_needs(name: str, messages: Sequence[Message]) -> Iterator[Message]:
    """Messages by our rules: an unknown developer is the system, content has the template's form, no empty calls."""
    for message in messages:
        changed = dict(message)
        if changed["role"] == "developer" and name not in KNOW_DEVELOPER:
            changed["role"] = "system"
        content = changed["content"]
        if isinstance(content, list) and name not in TAKE_PARTS:
            changed["content"] = "\n".join(part["text"] for part in content)
        elif isinstance(content, str) and name in TAKE_PARTS_ONLY:
            changed["content"] = [{"type": "text", "text": content}]
        if changed.get("tool_calls") == []:
            del changed["tool_calls"]
        yield changed


def _num_bos(text: str) -> int:
    count = 0
    while text.startswith(BOS):
        text = text.removeprefix(BOS)
        count += 1
    return count
