"""Constraints that leave the reasoning before an answer free."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from vllm_mxext.constraint_params import CONSTRAINTS, MAX_JSON_NESTING, StructuredOutputsParams, json_nesting
from vllm_mxext.parsing.reasoning import ReasoningFormat, prompt_opens_reasoning

_SPACE = {"type": "regex", "pattern": "[ \\n]*"}


def tag_params(tag_format: dict[str, Any]) -> StructuredOutputsParams:
    """Returns the constraint of one structural tag."""
    return StructuredOutputsParams(structural_tag=_tag_text(tag_format))


def after_reasoning(
    constraint: StructuredOutputsParams, reasoning: ReasoningFormat, prompt: str
) -> StructuredOutputsParams:
    """Returns a constraint that holds for what follows the reasoning.

    Args:
        constraint: form of the answer.
        reasoning: how the model marks its reasoning.
        prompt: what is answered; its end tells whether the template has opened or closed the reasoning.
    """
    answer = _tag_format(constraint)
    is_open = prompt_opens_reasoning(prompt, reasoning)
    if answer is None or is_open is False:
        return constraint
    begins = [""] if is_open else [*reasoning.starts, *([""] if reasoning.is_first else [])]
    thoughts = [
        {"type": "tag", "begin": begin, "content": {"type": "any_text"}, "end": end}
        for begin in begins
        for end in reasoning.ends
    ]
    thought = thoughts[0] if len(thoughts) == 1 else {"type": "or", "elements": thoughts}
    reasoned = {"type": "sequence", "elements": [thought, _SPACE, answer]}
    must_reason = is_open or reasoning.is_first
    tag = reasoned if must_reason else {"type": "or", "elements": [reasoned, answer]}
    changes: dict[str, Any] = {**dict.fromkeys(CONSTRAINTS), "structural_tag": _tag_text(tag)}
    return replace(constraint, **changes)


def _tag_text(tag_format: dict[str, Any]) -> str:
    return json.dumps({"format": tag_format}, ensure_ascii=False)


def _tag_format(constraint: StructuredOutputsParams) -> dict[str, Any] | None:
    """Returns a constraint as the format of a structural tag; None for a grammar, which has none."""
    tag: dict[str, Any] | None = None
    if constraint.json is not None:
        tag = {"type": "json_schema", "json_schema": _parsed(constraint.json)}
    elif constraint.json_object:
        tag = {"type": "json_schema", "json_schema": {"type": "object"}}
    elif constraint.regex is not None:
        tag = {"type": "regex", "pattern": constraint.regex}
    elif constraint.choice is not None:
        tag = {"type": "or", "elements": [{"type": "const_string", "value": text} for text in constraint.choice]}
    elif constraint.structural_tag is not None:
        value = _parsed(constraint.structural_tag)
        tag = value.get("format") if isinstance(value, dict) else None
    return tag


def _parsed(value: Any) -> Any:
    """Returns JSON that may be given as text; what is no JSON, or too deep, is left to the check of constraints."""
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return value if json_nesting(parsed) > MAX_JSON_NESTING else parsed
