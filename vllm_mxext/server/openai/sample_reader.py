"""Turns one sample's text into the parts of an assistant message, piece by piece or as a whole."""

from __future__ import annotations

import secrets
import string
import uuid
from typing import Any

from vllm_mxext.parsing.events import ContentDelta, Event, OutputParser, ReasoningDelta, ToolCallStart
from vllm_mxext.parsing.registry import CallIdForm
from vllm_mxext.server.openai.output_plan import OutputPlan
from vllm_mxext.server.openai.protocol import ChatCompletionRequest

_ID_CHARACTERS = string.ascii_letters + string.digits


class SampleReader:
    """Reads one sample; its deltas joined are its message, however the text was cut.

    Args:
        request: what decides which parts are passed on.
        plan: how the output is read.
        prompt: what the sample answers.
    """

    def __init__(self, request: ChatCompletionRequest, plan: OutputPlan, prompt: str) -> None:
        self._plan = plan
        self._parser: OutputParser | None = plan.parser(prompt) if plan.has_parser else None
        self._shows_reasoning = request.include_reasoning is not False
        self._is_legacy = request.has_legacy_functions
        self._num_past_calls = request.num_past_tool_calls
        self._reasoning: list[str] = []
        self._has_calls = False

    @property
    def reasoning(self) -> str:
        """All reasoning so far, shown or not."""
        return "".join(self._reasoning)

    def read(self, text: str, *, is_finished: bool) -> dict[str, Any]:
        """Takes more text and returns the delta that it makes; an empty one if nothing is certain yet."""
        if self._parser is None:
            return {"content": text} if text else {}
        events = [*self._parser.feed(text), *(self._parser.finish() if is_finished else ())]
        return self._delta(events)

    def message(self, text: str) -> dict[str, Any]:
        """Returns the parts of a whole sample's message."""
        if self._parser is None:
            return {"content": text}
        delta = self.read(text, is_finished=True)
        for call in delta.get("tool_calls", ()):
            del call["index"]
        has_more = self._has_calls or self._reasoning
        parts: dict[str, Any] = {"content": None if has_more else ""}
        if self._plan.setup.reasoning_parser is not None:
            parts |= {"reasoning": None, "reasoning_content": None}
        return parts | delta

    def finish_reason(self, reason: str | None) -> str | None:
        """Returns why the sample ended, in the words of the API."""
        if reason != "stop" or not self._has_calls or self._plan.is_named:
            return reason
        return "function_call" if self._is_legacy else "tool_calls"

    def _delta(self, events: list[Event]) -> dict[str, Any]:
        content: list[str] = []
        reasoning: list[str] = []
        calls: dict[int, dict[str, Any]] = {}
        for event in events:
            if isinstance(event, ContentDelta):
                content.append(event.text)
            elif isinstance(event, ReasoningDelta):
                reasoning.append(event.text)
            elif self._plan.max_calls is None or event.index < self._plan.max_calls:
                self._has_calls = True
                if isinstance(event, ToolCallStart):
                    calls[event.index] = self._begun_call(event)
                else:
                    call = calls.setdefault(event.index, {"index": event.index, "function": {"arguments": ""}})
                    call["function"]["arguments"] += event.text
        self._reasoning += reasoning
        delta: dict[str, Any] = {}
        if reasoning and self._shows_reasoning:
            delta |= dict.fromkeys(("reasoning", "reasoning_content"), "".join(reasoning))
        if content:
            delta["content"] = "".join(content)
        if calls and self._is_legacy:
            delta["function_call"] = calls[0]["function"]
        elif calls:
            delta["tool_calls"] = list(calls.values())
        return delta

    def _begun_call(self, start: ToolCallStart) -> dict[str, Any]:
        return {
            "index": start.index,
            "id": start.id or _new_id(self._plan.call_id_form, start.name, self._num_past_calls + start.index),
            "type": "function",
            "function": {"name": start.name, "arguments": ""},
        }


def _new_id(form: CallIdForm, name: str, number: int) -> str:
    if form is CallIdForm.NUMBERED:
        return f"functions.{name}:{number}"
    if form is CallIdForm.ALPHANUMERIC:
        return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(9))
    return f"chatcmpl-tool-{uuid.uuid4().hex}"
