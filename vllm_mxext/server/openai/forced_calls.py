"""Constraints that make a model call tools, and hold the arguments of calls to the schemas of tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vllm_mxext.beam_search_params import BeamSearchParams
from vllm_mxext.constraint_params import StructuredOutputsParams
from vllm_mxext.errors import InvalidRequestError, UnsupportedFeatureError
from vllm_mxext.parsing.harmony import open_header
from vllm_mxext.parsing.reasoning import ReasoningFormat
from vllm_mxext.parsing.tool_format import ToolFormat
from vllm_mxext.sampling_params import SamplingParams
from vllm_mxext.server.openai.output_plan import OutputPlan
from vllm_mxext.server.openai.protocol import ChatCompletionRequest
from vllm_mxext.server.openai.reasoned_output import after_reasoning, tag_params
from vllm_mxext.server.openai.tool_protocol import Tool

_ANY_OBJECT: dict[str, Any] = {"type": "object"}

_KEYWORDS_OF_OTHERS = frozenset(
    ("additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames", "$ref", "$dynamicRef",
     "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "dependencies")
)  # fmt: skip
"""Keywords by which a schema may speak of more properties than those it lists."""


def planned(
    params: SamplingParams | BeamSearchParams, request: ChatCompletionRequest, plan: OutputPlan, prompt: str
) -> SamplingParams | BeamSearchParams:
    """Returns a request's parameters with what its plan needs.

    Raises:
        InvalidRequestError: the request forces a call and another form of output at once, or a call of a beam search.
    """
    if isinstance(params, BeamSearchParams):
        return _planned_search(params, request, plan)
    return _planned_sampling(params, request, plan, prompt)


def _planned_search(params: BeamSearchParams, request: ChatCompletionRequest, plan: OutputPlan) -> BeamSearchParams:
    if plan.is_forced or plan.has_strict_tools:
        raise UnsupportedFeatureError(
            "use_beam_search cannot be combined with tool calls that are forced or strict; leave one of them out.",
            param="tools",
        )
    if plan.keeps_special_tokens and request.skip_special_tokens is None:
        return replace(params, skip_special_tokens=False)
    return params


def _planned_sampling(
    params: SamplingParams, request: ChatCompletionRequest, plan: OutputPlan, prompt: str
) -> SamplingParams:
    changes: dict[str, Any] = {}
    if plan.keeps_special_tokens and request.skip_special_tokens is None:
        changes["skip_special_tokens"] = False
    constraint = params.structured_outputs
    if plan.is_forced and constraint is not None:
        raise InvalidRequestError(
            "A forced tool call and another form of output exclude each other; leave one of them out.",
            param="tool_choice",
        )
    reasoning, tool_format = plan.reasoning_format, None
    if plan.is_forced or (constraint is None and plan.has_strict_tools):
        tool_format = _usable_format(plan, prompt)
        if plan.is_forced:
            constraint = forced_calls(plan.callable_tools, tool_format, plan.max_calls)
        else:
            constraint = strict_calls(plan.callable_tools, tool_format, reasoning)
    is_whole = plan.is_forced or tool_format is None or bool(tool_format.bare)
    if constraint is not None and reasoning is not None and is_whole:
        constraint = after_reasoning(constraint, reasoning, prompt)
    if constraint is not params.structured_outputs:
        changes["structured_outputs"] = constraint
    return params.clone(**changes) if changes else params


def _usable_format(plan: OutputPlan, prompt: str) -> ToolFormat:
    """Returns how calls are written.

    Raises:
        UnsupportedFeatureError: nobody knows that, or the prompt ends within a message.
    """
    tool_format = plan.tool_format
    if tool_format is None:
        raise UnsupportedFeatureError(
            f"Calls that the tool parser {plan.tool_parser} reads cannot be held to schemas; leave strict out, or send "
            "tool_choice required or a function.",
            param="tools",
        )
    if tool_format.answer and open_header(prompt) is not None:
        raise UnsupportedFeatureError(
            "A message that is left open cannot be continued beside tools that are strict or must be called; leave "
            "continue_final_message or strict out.",
            param="continue_final_message",
        )
    return tool_format


def forced_calls(tools: Sequence[Tool], tool_format: ToolFormat, max_calls: int | None) -> StructuredOutputsParams:
    """Returns the constraint under which an output is one or more calls of some tools, and no answer."""
    tags = [_call(tool, tool_format, tool.function.schema_of_arguments) for tool in tools]
    calls = _calls(tags, tool_format, max_calls)
    opening, closing = _literal(tool_format.opening), _literal(tool_format.closing)
    return tag_params(_sequence(*_thoughts(tool_format), *opening, calls, *closing))


def strict_calls(
    tools: Sequence[Tool], tool_format: ToolFormat, reasoning: ReasoningFormat | None = None
) -> StructuredOutputsParams:
    """Returns the constraint under which calls that the model makes on its own fit the schemas of strict tools.

    Args:
        tools: the tools, some of them strict.
        tool_format: how calls are written.
        reasoning: how reasoning is marked that may come before; None if there is none.
    """
    tags = [
        _call(tool, tool_format, tool.function.schema_of_arguments if tool.function.strict else _ANY_OBJECT)
        for tool in tools
    ]
    calls = _calls(tags, tool_format, None)
    if tool_format.answer:
        answer = {"type": "tag", "begin": tool_format.answer, "content": {"type": "any_text"}, "end": ""}
        return tag_params(_sequence(*_thoughts(tool_format), {"type": "or", "elements": [answer, calls]}))
    marked = {"type": "tag", "begin": tool_format.opening, "content": calls, "end": tool_format.closing}
    answer = {"excludes": list(tool_format.other_begins)}
    if tool_format.bare:
        # behind the reasoning an output begins anew, so what is no reasoning must not look like some
        answer["excluded_beginnings"] = [*tool_format.bare, *(reasoning.starts if reasoning else ())]
    if not tool_format.trigger:
        return tag_params({"type": "or", "elements": [marked, {"type": "any_text", **answer}]})
    tags = [marked] if tool_format.opening else tags
    return tag_params({"type": "triggered_tags", "triggers": [tool_format.trigger], "tags": tags, **answer})


def _sequence(*elements: dict[str, Any]) -> dict[str, Any]:
    return {"type": "sequence", "elements": list(elements)}


def _thoughts(tool_format: ToolFormat) -> list[dict[str, Any]]:
    tags = [
        {"type": "tag", "begin": begin, "content": {"type": "any_text"}, "end": end}
        for begin, end in tool_format.thoughts
    ]
    return [{"type": "tags_with_separator", "tags": tags, "separator": ""}] if tags else []


def _calls(tags: list[dict[str, Any]], tool_format: ToolFormat, max_calls: int | None) -> dict[str, Any]:
    return {
        "type": "tags_with_separator",
        "tags": tags,
        "separator": tool_format.separator,
        "at_least_one": True,
        "stop_after_first": max_calls == 1,
    }


def _call(tool: Tool, tool_format: ToolFormat, schema: dict[str, Any]) -> dict[str, Any]:
    if not tool_format.can_name(tool.function.name):
        raise InvalidRequestError(
            f"This model writes calls as Python, in which {tool.function.name} is no name; rename the function.",
            param="tools",
        )
    arguments: dict[str, Any] = {"type": "json_schema", "json_schema": _closed(schema), "style": tool_format.style}
    if tool_format.has_number:
        number = {"type": "regex", "pattern": "[0-9]+"}
        arguments = _sequence(number, *_literal(tool_format.before_arguments), arguments)
    return {"type": "tag", "begin": tool_format.begin(tool.function.name), "content": arguments, "end": tool_format.end}


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Rules out arguments that the schema does not name, unless it says which others there may be.

    JSON Schema would allow any, but no function takes them; llama.cpp's grammars rule them out as well.
    """
    properties, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list) or schema.keys() & _KEYWORDS_OF_OTHERS:
        return schema
    if not all(isinstance(name, str) and name in properties for name in required):
        return schema  # it wants arguments that it does not describe
    return {**schema, "additionalProperties": False}


def _literal(text: str) -> list[dict[str, Any]]:
    return [{"type": "const_string", "value": text}] if text else []
