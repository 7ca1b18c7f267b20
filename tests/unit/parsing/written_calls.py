"""Calls as a format has them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_mxext.parsing.tool_format import ToolFormat

_AROUND = {
    "qwen_xml": ("<parameter=", ">\n", "\n</parameter>\n"),
    "minimax_xml": ('<parameter name="', '">', "</parameter>\n"),
    "glm_xml": ("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n"),
}


def written(form: ToolFormat, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Calls with arguments that are texts and numbers."""
    texts = [
        form.begin(name)
        + (f"{number}" if form.has_number else "")
        + form.before_arguments
        + _arguments(form.style, arguments)
        + form.end
        for number, (name, arguments) in enumerate(calls)
    ]
    return form.opening + form.separator.join(texts) + form.closing


def _arguments(style: str, arguments: Mapping[str, Any]) -> str:
    if style == "json":
        return json.dumps(arguments)
    if style == "python":
        return ", ".join(f"{key}={json.dumps(value)}" for key, value in arguments.items())
    if style in _AROUND:
        begin, middle, end = _AROUND[style]
        return "".join(f"{begin}{key}{middle}{value}{end}" for key, value in arguments.items())
    delimiter = {"gemma": "<escape>", "gemma4": '<|"|>'}[style]
    texts = {
        key: f"{delimiter}{value}{delimiter}" if isinstance(value, str) else value for key, value in arguments.items()
    }
    return "{" + ",".join(f"{key}:{text}" for key, text in texts.items()) + "}"
