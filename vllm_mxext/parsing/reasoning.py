"""Reasoning before an answer, between markers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from vllm_mxext.parsing.events import ContentDelta, ParserContext, ReasoningDelta
from vllm_mxext.parsing.scanner import Markers, SpaceHolder, Steps
from vllm_mxext.parsing.stream_parser import StreamParser

PROMPT_END_CHARS = 512
"""Characters at the end of a prompt in which a template opens or closes reasoning."""

_TURN_MARKS = ("<|", "<｜", "[/INST]", "_of_turn>", "</s>")
"""Parts of what templates write between turns: a reasoning marker before one is not open any more."""


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """How a model marks its reasoning.

    Attributes:
        starts: markers with which reasoning begins.
        ends: markers with which it ends; the first one of `starts` goes with the first one of these, and so on.
        stops: markers that end it too, and belong to the answer.
        is_first: the text begins with reasoning even without a marker, unless the prompt has closed it.
        answer: markers around the answer, which are dropped.
    """

    starts: tuple[str, ...] = ("<think>",)
    ends: tuple[str, ...] = ("</think>",)
    stops: tuple[str, ...] = ()
    is_first: bool = False
    answer: tuple[str, str] | None = None

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Each start with the end that goes with it; the first end for starts beyond the last one."""
        return list(itertools.zip_longest(self.starts, self.ends[: len(self.starts)], fillvalue=self.ends[0]))


THINK = ReasoningFormat()
"""`<think>...</think>` where the text begins with it, or the prompt ends within it (Qwen 3, GLM 4.5, most others)."""

DEEPSEEK_R1 = ReasoningFormat(is_first=True)
"""The model reasons first, `<think>` may be missing: text without `</think>` is all reasoning, as in vLLM."""

KIMI_K2 = ReasoningFormat(stops=("<|tool_calls_section_begin|>",), is_first=True)
"""As DeepSeek R1; the model may go over to tool calls without closing its reasoning."""

MISTRAL = ReasoningFormat(("[THINK]",), ("[/THINK]",))
"""Magistral."""

GRANITE = ReasoningFormat(
    ("Here is my thought process:", "Here's my thought process:", "<think>"),
    ("Here is my response:", "Here's my response:", "</think>"),
    answer=("<response>", "</response>"),
)
"""Granite 3.2 in words, 3.3 in tags."""

HUNYUAN = ReasoningFormat(answer=("<answer>", "</answer>"))
"""Hunyuan A13B: `<think>...</think><answer>...</answer>`."""


GEMMA4 = ReasoningFormat(("<|channel>thought", "<|channel>"), ("<channel|>",))
"""Gemma 4: a channel named `thought`."""


class ReasoningParser(StreamParser):
    """Tells reasoning from the answer.

    Reasoning is looked for at the beginning only: markers further on are part of the answer. White space around
    reasoning is dropped. Reasoning that is cut off stays reasoning.

    Args:
        context: its `prompt_end` tells whether the template has opened or closed the reasoning.
        reasoning_format: how the model marks it.
    """

    def __init__(self, context: ParserContext, reasoning_format: ReasoningFormat) -> None:
        super().__init__(context)
        self._format = reasoning_format
        self._space = SpaceHolder()
        self._space_in_answer = SpaceHolder()

    def run(self) -> Steps[None]:
        """Reads the reasoning, if there is any, then the answer."""
        is_open = prompt_opens_reasoning(self.context.prompt_end, self._format)
        if is_open is False:
            yield from self._read_rest()
            return
        leading: list[str] = []
        yield from self.scanner.space(leading.append)
        start = yield from self.scanner.literal(*self._format.starts)
        if start is None and not is_open and not self._format.is_first:
            self._content("".join(leading))
            yield from self._read_rest()
            return
        yield from self.scanner.space()
        end = yield from self.scanner.until(Markers(*self._format.ends, *self._format.stops), self._reasoning)
        if end in self._format.stops:
            self._content(end)
        yield from self.scanner.space()
        yield from self._read_answer()

    def _read_answer(self) -> Steps[None]:
        if self._format.answer is None or not (yield from self.scanner.literal(self._format.answer[0])):
            yield from self._read_rest()
            return
        yield from self.scanner.space()
        end = Markers(self._format.answer[1])
        while (yield from self.scanner.until(end, self._content_in_answer)):
            yield from self.scanner.space()

    def _content_in_answer(self, text: str) -> None:
        """Passes on the answer without the white space before its end marker."""
        self._content(self._space_in_answer.push(text))

    def _read_rest(self) -> Steps[None]:
        while (yield from self.scanner.peek()):
            self._content(self.scanner.remaining())

    def _reasoning(self, text: str) -> None:
        text = self._space.push(text)
        if text:
            self.emit(ReasoningDelta(text))

    def _content(self, text: str) -> None:
        if text:
            self.emit(ContentDelta(text))


def prompt_opens_reasoning(prompt_end: str, reasoning_format: ReasoningFormat) -> bool | None:
    """Tells whether a prompt ends within reasoning (True) or just behind it (False); None if it says nothing."""
    start, start_end = _last(prompt_end, reasoning_format.starts)
    end, end_end = _last(prompt_end, reasoning_format.ends)
    if max(start, end) < 0:
        return None
    rest = prompt_end[max(start_end, end_end) :]
    if any(mark in rest for mark in _TURN_MARKS):
        return None
    return start > end


def _last(text: str, markers: tuple[str, ...]) -> tuple[int, int]:
    """Returns where the last of some markers begins and ends in `text`; -1 if there is none."""
    return max((position, position + len(marker)) for marker in markers for position in [text.rfind(marker)])
