"""Request models of tools: what a model may call, and what it must."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_TOOLS = 512

ToolName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
ToolChoiceWord = Literal["none", "auto", "required"]


class FunctionDefinition(BaseModel):
    """A function that the model may call; further fields are shown to the model as they are."""

    model_config = ConfigDict(extra="allow")

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """JSON schema of the arguments."""
        return self.parameters or {"type": "object", "properties": {}}


class Tool(BaseModel):
    """One tool."""

    type: Literal["function"] = "function"
    function: FunctionDefinition


class FunctionName(BaseModel):
    """A function by its name."""

    name: ToolName


class NamedToolChoice(BaseModel):
    """The one function that the model must call."""

    type: Literal["function"] = "function"
    function: FunctionName


class AllowedTools(BaseModel):
    """Some of the request's tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedToolChoice], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedToolChoice(BaseModel):
    """A choice among some of the request's tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = ToolChoiceWord | AllowedToolChoice | NamedToolChoice


def checked_tools(tools: list[Tool] | None, choice: ToolChoice | None, field: str) -> None:
    """Checks tools and choice together.

    Args:
        tools: the tools; None means that there are none.
        choice: which of them.
        field: name of the request's list, for messages.

    Raises:
        ValueError: a name occurs twice or is not among the tools, or there are no tools to choose from.
    """
    names = [tool.function.name for tool in tools or ()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{field} has several functions called {twice[0]}; give each a name of its own")
    for tool in tools or ():
        kind = (tool.function.parameters or {}).get("type", "object")
        if kind != "object":
            raise ValueError(f"the parameters of {tool.function.name} must be the schema of an object, not of {kind!r}")
    if not names:
        if choice not in (None, "none", "auto"):
            raise ValueError(f"a choice of tools needs {field}")
        return
    chosen = []
    if isinstance(choice, NamedToolChoice):
        chosen = [choice.function.name]
    elif isinstance(choice, AllowedToolChoice):
        chosen = [tool.function.name for tool in choice.allowed_tools.tools]
    for name in chosen:
        if name not in names:
            raise ValueError(f"the chosen function {name} is not among {field}")
