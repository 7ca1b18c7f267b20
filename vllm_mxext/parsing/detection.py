"""The parsers that a chat template suggests: what it writes for past calls and reasoning is what the model writes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DetectedParsers:
    """The parsers of a model's format, by name.

    Attributes:
        tool_parser: None if the template does not tell how calls are written.
        reasoning_parser: None if the template knows no reasoning.
    """

    tool_parser: str | None
    reasoning_parser: str | None


_TOOL_FINGERPRINTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("openai", ("<|channel|>",)),
    ("minimax_m2", ("<minimax:tool_call>",)),
    ("minimax_m2", ("<invoke name=", "minimax")),
    ("qwen3_coder", ("<function=", "<parameter=")),
    ("glm45", ("<arg_key>",)),
    ("gemma", ("<start_function_call>",)),
    ("gemma4", ("<|tool_call>", "call:")),
    ("deepseek_v32", ("｜DSML｜", "function_calls>")),
    ("kimi_k2", ("<|tool_calls_section_begin|>",)),
    ("deepseek_v3", ("<｜tool▁calls▁begin｜>", "```json")),
    ("deepseek_v31", ("<｜tool▁calls▁begin｜>",)),
    ("mistral", ("[TOOL_CALLS]",)),
    ("internlm", ("<|action_start|>",)),
    ("jamba", ("<tool_calls>",)),
    ("granite", ("<|start_of_role|>", "<|tool_call|>")),
    ("granite", ("<|start_of_role|>", "<tool_call>")),
    ("phi4_mini_json", ("functools",)),
    ("phi4_mini_json", ("<|tool|>", "<|/tool|>")),
    ("xlam", ("tool_call_name", "arg1")),
    ("llama4_pythonic", ("func_name1(", "<|header_start|>")),
    ("pythonic", ("func_name1(",)),
    ("hermes", ("<tool_call>",)),
    ("llama3_json", ("<|python_tag|>",)),
    ("llama3_json", ("function name, ", "parameters")),
)
"""Parser -> what its template holds, all of it; the first that fits counts."""

_REASONING_FINGERPRINTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("openai_gptoss", ("<|channel|>", "analysis")),
    ("mistral", ("[THINK]",)),
    ("gemma4", ("<|channel>thought",)),
    ("granite", ("thought process",)),
    ("granite", ("<|start_of_role|>", "think>")),
    ("minimax_m2", ("minimax", "think>")),
    ("kimi_k2", ("<|tool_calls_section_begin|>", "think>")),
    ("hunyuan", ("<|extra_4|>", "think>")),
    ("hunyuan", ("<answer>", "think>")),
    ("glm45", ("<arg_key>", "think>")),
    ("deepseek_r1", ("<｜Assistant｜>", "think>")),
    ("qwen3", ("<|im_start|>", "think>")),
    ("generic", ("think>",)),
)


def detect_parsers(chat_template: str) -> DetectedParsers:
    """Returns the parsers that a template suggests."""
    return DetectedParsers(
        _first_fitting(_TOOL_FINGERPRINTS, chat_template), _first_fitting(_REASONING_FINGERPRINTS, chat_template)
    )


def _first_fitting(fingerprints: tuple[tuple[str, tuple[str, ...]], ...], template: str) -> str | None:
    return next((name for name, parts in fingerprints if all(part in template for part in parts)), None)
