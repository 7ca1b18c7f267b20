"""Request models of a conversation's messages."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, StringConstraints


class _StopAtFirst(FailFast):
    """`FailFast` that may stand inside a union, which needs hashable members."""

    def __hash__(self) -> int:
        return id(self)


STOP_AT_FIRST = _StopAtFirst()
"""A list of a million wrong items is one finding, not a million."""

Role = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class ContentPart(BaseModel):
    """One part of a message's content."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(BaseModel):
    """The function part of a tool call in a conversation's history."""

    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(BaseModel):
    """A tool call in a conversation's history."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(BaseModel):
    """One message of a conversation; templates may read fields that are not listed here."""

    model_config = ConfigDict(extra="allow")

    role: Role
    content: str | Annotated[list[ContentPart], STOP_AT_FIRST] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], STOP_AT_FIRST] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, list):
            return "\n".join(part.text or part.refusal or "" for part in self.content)
        return self.content or ""

    def for_template(self) -> dict[str, Any]:
        """Returns the message as templates know it: OpenAI's first form of function calls becomes the present one."""
        fields = self.model_dump(exclude_none=True)
        call = fields.pop("function_call", None)
        if call is not None and not self.tool_calls:
            fields["tool_calls"] = [{"type": "function", "function": call}]
        if self.role == "function":
            fields["role"] = "tool"
        return fields
