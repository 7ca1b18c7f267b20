"""Constraints that make a model call tools, and hold the arguments of calls to the schemas of tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vllm_mxext.beam_search_params import BeamSearchParams
from vllm_mxext.constraint_params import StructuredOutputsParams
from vllm_mxext.errors import InvalidRequestError, UnsupportedFeatureError
from vllm_mxext.parsing.tool_format import ToolFormat
from vllm_mxext.sampling_params import SamplingParams
from vllm_mxext.server.openai.output_plan import OutputPlan
from vllm_mxext.server.openai.protocol import ChatCompletionRequest
from vllm_mxext.server.openai.reasoned_output import after_reasoning, tag_params
from vllm_mxext.server.openai.tool_protocol import Tool

_ANY_OBJECT: dict[str, Any] = {"type": "object"}


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
    if plan.is_forced or any(tool.function.strict for tool in plan.callable_tools):
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
    if plan.is_forced:
        constraint = forced_calls(plan.callable_tools, plan.tool_format, plan.max_calls)
    elif constraint is None and any(tool.function.strict for tool in plan.callable_tools):
        constraint = strict_calls(plan.callable_tools, plan.tool_format)
    reasoning = plan.reasoning_format
    if constraint is not None and reasoning is not None and (plan.is_forced or params.structured_outputs is not None):
        constraint = after_reasoning(constraint, reasoning, prompt)
    if constraint is not params.structured_outputs:
        changes["structured_outputs"] = constraint
    return params.clone(**changes) if changes else params


def forced_calls(tools: Sequence[Tool], tool_format: ToolFormat, max_calls: int | None) -> StructuredOutputsParams:
    """Returns the constraint under which an output is one or more calls of some tools, and no answer."""
    tags = [_call(tool, tool_format, tool.function.schema_of_arguments) for tool in tools]
    calls = _calls(tags, tool_format, max_calls)
    opening, closing = _literal(tool_format.opening), _literal(tool_format.closing)
    return tag_params({"type": "sequence", "elements": [*_thoughts(tool_format), *opening, calls, *closing]})


def strict_calls(tools: Sequence[Tool], tool_format: ToolFormat) -> StructuredOutputsParams | None:
    """Returns the constraint under which calls that the model makes on its own fit the schemas of strict tools.

    None for a format whose calls do not begin with a marker: there is nothing to tell them from text.
    """
    if not tool_format.trigger:
        return None
    tags = [
        _call(tool, tool_format, tool.function.schema_of_arguments if tool.function.strict else _ANY_OBJECT)
        for tool in tools
    ]
    if tool_format.answer:
        answer = {"type": "tag", "begin": tool_format.answer, "content": {"type": "any_text"}, "end": ""}
        ending = {"type": "or", "elements": [answer, _calls(tags, tool_format, None)]}
        return tag_params({"type": "sequence", "elements": [*_thoughts(tool_format), ending]})
    if tool_format.opening:
        content = _calls(tags, tool_format, None)
        tags = [{"type": "tag", "begin": tool_format.opening, "content": content, "end": tool_format.closing}]
    return tag_params({"type": "triggered_tags", "triggers": [tool_format.trigger], "tags": tags})


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
    arguments: dict[str, Any] = {"type": "json_schema", "json_schema": schema}
    if tool_format.has_number:
        number = {"type": "regex", "pattern": "[0-9]+"}
        elements = [number, *_literal(tool_format.before_arguments), arguments]
        arguments = {"type": "sequence", "elements": elements}
    return {"type": "tag", "begin": tool_format.begin(tool.function.name), "content": arguments, "end": tool_format.end}


def _literal(text: str) -> list[dict[str, Any]]:
    return [{"type": "const_string", "value": text}] if text else []
