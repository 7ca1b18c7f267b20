"""How calls are written in each format, for output that is forced into it."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """The text around the arguments of calls.

    Calls are written as `opening`, one or more calls with `separator` between, `closing`. A call is `begin(name)`, then
    digits if `has_number`, then `before_arguments`, the arguments, `end`.

    Where an output is made of messages, thoughts may come before the calls, and an answer in place of them.

    Attributes:
        trigger: text with which calls begin, for a model that may also answer without; empty if calls are told from
            answers by what an output begins with.
        before_name: text before the function's name.
        after_name: text behind it.
        end: text behind the arguments.
        separator: text between calls.
        opening: text before the first call.
        closing: text behind the last call.
        has_number: the call's number, decimal digits, stands behind `begin(name)`.
        before_arguments: text between that number and the arguments.
        thoughts: beginning and end of messages that are neither call nor answer.
        answer: beginning of a message that answers without a call; empty if an output is not made of messages.
        style: how the arguments are written; JSON, or one of the styles of `native/structured/call_arguments.py`.
        other_begins: what the parser takes for the beginning of calls too, so that answers must not contain it.
        bare: signs for which the parser takes the beginning of an output for calls.
    """

    trigger: str
    before_name: str
    after_name: str
    end: str
    separator: str = ""
    opening: str = ""
    closing: str = ""
    has_number: bool = False
    before_arguments: str = ""
    thoughts: tuple[tuple[str, str], ...] = ()
    answer: str = ""
    style: str = "json"
    other_begins: tuple[str, ...] = ()
    bare: str = ""

    def can_name(self, name: str) -> bool:
        """Whether the parser reads calls of a function of this name."""
        return self.style != "python" or name.replace(".", "").isidentifier()

    def begin(self, name: str) -> str:
        """The text from the beginning of a call up to its arguments, or up to its number."""
        return f"{self.before_name}{name}{self.after_name}"


def _object_in(trigger: str, end: str, separator: str, arguments: str = "arguments") -> ToolFormat:
    """One JSON object per call."""
    return ToolFormat(trigger, f'{trigger}{{"name": "', f'", "{arguments}": ', "}" + end, separator)


def _array_in(opening: str, closing: str, other_begins: tuple[str, ...] = (), bare: str = "") -> ToolFormat:
    """One JSON array of all calls."""
    return ToolFormat(
        opening,
        '{"name": "',
        '", "arguments": ',
        "}",
        ", ",
        f"{opening}[",
        f"]{closing}",
        other_begins=other_begins,
        bare=bare,
    )


GENERIC = _array_in("", "", ("```json",), "[{")
"""A JSON array of calls without any marker, for formats that are not JSON; the parser `json` reads it."""

HERMES = ToolFormat("<tool_call>", '<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", separator="\n")
"""Hermes, Qwen 2.5, Qwen 3."""

LLAMA3_JSON = ToolFormat(
    "", '{"name": "', '", "parameters": ', "}", separator="; ", other_begins=("<|python_tag|>",), bare="{"
)
"""Llama 3 with JSON."""

PYTHONIC = ToolFormat("", "", "(", ")", ", ", "[", "]", style="python", bare="[")
"""Llama 3.2, ToolACE."""

LLAMA4_PYTHONIC = replace(PYTHONIC, other_begins=("<|python_start|>",))
"""Llama 4."""

MISTRAL = ToolFormat("[TOOL_CALLS]", "[TOOL_CALLS]", "[ARGS]", "")
"""Mistral since tokenizer version 13."""

GRANITE = _array_in("<tool_call>", "", ("<|tool_call|>",), "[")
INTERNLM = _object_in("<|action_start|><|plugin|>", "<|action_end|>", "\n", "parameters")
JAMBA = _array_in("<tool_calls>", "</tool_calls>")
PHI4_MINI = _array_in("functools", "")
XLAM = _array_in("", "", ("```", "[TOOL_CALLS]", "<tool_call>"), "[")

QWEN3_CODER = ToolFormat(
    "<tool_call>",
    "<tool_call>\n<function=",
    ">\n",
    "</function>\n</tool_call>",
    separator="\n",
    style="qwen_xml",
    other_begins=("<function=",),
)
"""Qwen3-Coder, Qwen 3.5."""

GLM45 = ToolFormat("<tool_call>", "<tool_call>", "\n", "</tool_call>", separator="\n", style="glm_xml")
"""GLM 4.5 and later."""

MINIMAX_M2 = ToolFormat(
    "<minimax:tool_call>",
    '<invoke name="',
    '">\n',
    "</invoke>\n",
    opening="<minimax:tool_call>\n",
    closing="</minimax:tool_call>",
    style="minimax_xml",
)
"""MiniMax M2."""

GEMMA = ToolFormat("<start_function_call>", "<start_function_call>call:", "", "<end_function_call>", style="gemma")
"""FunctionGemma."""

GEMMA4 = ToolFormat("<|tool_call>", "<|tool_call>call:", "", "<tool_call|>", style="gemma4")
"""Gemma 4."""

DEEPSEEK_V3 = ToolFormat(
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    "\n```json\n",
    "\n```<｜tool▁call▁end｜>",
    separator="\n",
    opening="<｜tool▁calls▁begin｜>",
    closing="<｜tool▁calls▁end｜>",
    other_begins=("<｜tool▁call▁begin｜>",),
)

DEEPSEEK_V31 = ToolFormat(
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    opening="<｜tool▁calls▁begin｜>",
    closing="<｜tool▁calls▁end｜>",
    other_begins=("<｜tool▁call▁begin｜>",),
)

DEEPSEEK_V32 = ToolFormat(
    "<｜DSML｜function_calls>",
    '<｜DSML｜invoke name="',
    '">\n',
    "\n</｜DSML｜invoke>\n",
    opening="<｜DSML｜function_calls>\n",
    closing="</｜DSML｜function_calls>",
)
"""All arguments as one object, which SGLang reads too, instead of parameters one by one."""

KIMI_K2 = ToolFormat(
    "<|tool_calls_section_begin|>",
    "<|tool_call_begin|>functions.",
    ":",
    "<|tool_call_end|>",
    opening="<|tool_calls_section_begin|>",
    closing="<|tool_calls_section_end|>",
    has_number=True,
    before_arguments="<|tool_call_argument_begin|>",
    other_begins=("<|tool_call_section_begin|>", "<|tool_call_begin|>"),
)

HARMONY = ToolFormat(
    "<|channel|>commentary to=functions.",
    "<|channel|>commentary to=functions.",
    " <|constrain|>json<|message|>",
    "<|call|>",
    separator="<|start|>assistant",
    thoughts=tuple(
        (f"<|channel|>{channel}<|message|>", "<|end|><|start|>assistant") for channel in ("analysis", "commentary")
    ),
    answer="<|channel|>final<|message|>",
)
"""gpt-oss."""
