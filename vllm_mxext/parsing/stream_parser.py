"""What all parsers of generated text share: reading in pieces, content around calls, calls that come to nothing."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from vllm_mxext.parsing.events import (
    ContentDelta,
    Event,
    ParserContext,
    ToolArgumentsDelta,
    ToolCallStart,
)
from vllm_mxext.parsing.literals import JSON, loads, read_value
from vllm_mxext.parsing.scanner import SPACE, MalformedError, Markers, Scanner, SpaceHolder, Steps


class StreamParser:
    """Base of parsers: a subclass reads the whole text in `run`, a generator that pauses where it needs more.

    Args:
        context: what it may know of the request.
    """

    def __init__(self, context: ParserContext) -> None:
        self.context = context
        self.scanner = Scanner()
        self._events: list[Event] = []
        self._steps = self.run()

    def run(self) -> Steps[None]:
        """Reads the text to its end."""
        raise NotImplementedError

    def feed(self, text: str) -> Sequence[Event]:
        """Takes more text and returns what is now certain."""
        self.scanner.feed(text)
        return self._advance()

    def finish(self) -> Sequence[Event]:
        """Returns what is left when the text has ended; call once."""
        self.scanner.end()
        return self._advance()

    def emit(self, event: Event) -> None:
        """Appends an event."""
        self._events.append(event)

    def _advance(self) -> Sequence[Event]:
        next(self._steps, None)
        events, self._events = self._events, []
        return _joined(events)


def _joined(events: Sequence[Event]) -> list[Event]:
    """Makes one event of neighbours that are more of the same."""
    joined: list[Event] = []
    for _, group in itertools.groupby(events, lambda event: (type(event), getattr(event, "index", 0))):
        first, *others = group
        if others and not isinstance(first, ToolCallStart):
            text = first.text + "".join(event.text for event in others if not isinstance(event, ToolCallStart))
            first = dataclasses.replace(first, text=text)
        joined.append(first)
    return joined


class ToolParser(StreamParser):
    """Base of tool parsers.

    A call is announced as soon as its name is certain and its arguments begin as an object. What looks like a call and
    turns out malformed before that is content, to the letter. What turns out malformed later cannot be taken back: the
    text of the arguments is passed on as it is, up to the end marker. White space before a call
    belongs to the format, and so does what follows one unless it stands between two parts of the content.

    Attributes:
        is_behind_call: nothing but white space has come since the last call.
    """

    def __init__(self, context: ParserContext) -> None:
        super().__init__(context)
        self._num_calls = 0
        self._space = SpaceHolder()
        self.is_behind_call = False
        self._has_content = False

    def content(self, text: str) -> None:
        """Passes on content; white space waits until it is certain that no call follows."""
        text = self._space.push(text)
        if text:
            is_leading = self.is_behind_call and not self._has_content
            self.emit(ContentDelta(text.lstrip(SPACE) if is_leading else text))
            self.is_behind_call, self._has_content = False, True

    def end_content(self) -> None:
        """Passes on white space that waited, when no call followed."""
        space = self._space.pop()
        if space and not self.is_behind_call:
            self.emit(ContentDelta(space))

    def start_call(self, name: str, call_id: str | None = None) -> None:
        """Announces a call; from here on nothing is taken back."""
        self.scanner.release()
        self._space.pop()
        self.is_behind_call = True
        self.emit(ToolCallStart(self._num_calls, name, call_id))
        self._num_calls += 1

    def arguments(self, text: str) -> None:
        """Passes on more of the last call's arguments."""
        if text:
            self.emit(ToolArgumentsDelta(self._num_calls - 1, text))

    def attempt(self, begin: str, steps: Steps[None]) -> Steps[None]:
        """Reads one or more calls; what comes to nothing before it is announced is content.

        Args:
            begin: what has been read already and would belong to that content.
            steps: reads the calls; raises MalformedError.
        """
        self.scanner.hold(begin)
        try:
            yield from steps
        except MalformedError:
            self.content(self.scanner.release())
        else:
            self.scanner.release()

    def read_arguments(self, name: str, ends: Markers | None, call_id: str | None = None) -> Steps[None]:
        """Announces a call and reads its arguments, a JSON object.

        Args:
            name: of the function.
            ends: what ends arguments that are no JSON; None if nothing does.
            call_id: in the model's own form.

        Raises:
            MalformedError: no object begins here (the call is not announced), or it is broken.
        """
        if (yield from self.scanner.peek()) != "{":
            raise MalformedError
        self.start_call(name, call_id)
        try:
            yield from read_value(self.scanner, JSON, self.arguments)
        except MalformedError:
            yield from self._broken_arguments(ends)
            raise

    def _broken_arguments(self, ends: Markers | None) -> Steps[None]:
        if ends is not None:
            yield from self.scanner.until(ends, self.arguments)
            return
        while (yield from self.scanner.peek()):
            self.arguments(self.scanner.remaining())

    def read_string(self) -> Steps[str]:
        """Reads a JSON string and returns its value.

        Raises:
            MalformedError: there is none, or it is no Unicode text: it has half of a surrogate pair.
        """
        if (yield from self.scanner.peek()) != '"':
            raise MalformedError
        pieces: list[str] = []
        yield from read_value(self.scanner, JSON, pieces.append)
        value = str(loads("".join(pieces)))
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise MalformedError
        return value
