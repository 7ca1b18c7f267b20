"""The unread text of a stream, and steps that read it: generators that pause wherever they need more text."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")

Steps = Generator[None, None, T]
"""Reads from a scanner; a pause means that more text is needed, the value comes at the end."""

Sink = Callable[[str], None]
"""Takes text that has been read."""

SPACE = " \t\r\n"
"""What every format here counts as white space."""

_SPACE_RUN = re.compile(f"[{SPACE}]+")


class MalformedError(Exception):
    """The text is not of the expected form; raised and caught inside parsers only."""


def ignore(text: str) -> None:
    """A sink for text that nobody needs."""


class Markers:
    """Texts to look for; the longest one counts where several begin at one place.

    Args:
        texts: the markers, none of them empty.
    """

    def __init__(self, *texts: str) -> None:
        self._texts = texts
        self._longest = max(map(len, texts))
        self._first = frozenset(text[0] for text in texts)
        self._pattern = re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)))

    def search(self, text: str, position: int, *, is_ended: bool) -> tuple[int, int | None]:
        """Finds the first marker.

        Returns:
            Where it begins and where it ends. The end is None if there is none that is certain yet: then text from the
            returned place on may be the beginning of one.
        """
        match = self._pattern.search(text, position)
        if is_ended:
            return match.span() if match else (len(text), None)
        open_at = self._unfinished(text, max(position, len(text) - self._longest + 1))
        if match and match.start() < open_at:
            return match.span()
        return open_at, None

    def _unfinished(self, text: str, position: int) -> int:
        """Returns where a marker begins that the text ends within, or the end of the text."""
        for start in range(position, len(text)):
            if text[start] in self._first:
                rest = text[start:]
                if any(len(rest) < len(marker) and marker.startswith(rest) for marker in self._texts):
                    return start
        return len(text)


class SpaceHolder:
    """Holds back white space at the end of a text that comes in pieces."""

    def __init__(self) -> None:
        self._space: list[str] = []

    def push(self, text: str) -> str:
        """Takes more text, and returns what may be passed on: all but white space at its end."""
        kept = text.rstrip(SPACE)
        held = text[len(kept) :]
        if kept:
            kept = self.pop() + kept
        if held:
            self._space.append(held)
        return kept

    def pop(self) -> str:
        """Returns what was held back, and forgets it."""
        space, self._space = "".join(self._space), []
        return space


class Scanner:
    """Text that comes in pieces and is read once, from front to back.

    What is unread stays short: readers take what they have understood, so that the work grows linearly with the text.
    """

    def __init__(self) -> None:
        self._text = ""
        self._position = 0
        self._is_ended = False
        self._held: list[str] | None = None

    def feed(self, text: str) -> None:
        """Appends more text."""
        self._text = self._text[self._position :] + text
        self._position = 0

    def end(self) -> None:
        """Notes that no more text comes."""
        self._is_ended = True

    def hold(self, text: str = "") -> None:
        """Begins to remember what is read, after `text`."""
        self._held = [text]

    def release(self) -> str:
        """Forgets and returns what was read since `hold`."""
        held, self._held = self._held, None
        return "".join(held or ())

    @property
    def is_holding(self) -> bool:
        """Whether what is read is being remembered."""
        return self._held is not None

    def more(self) -> Steps[bool]:
        """Waits for more text; False if none comes."""
        if self._is_ended:
            return False
        yield
        return True

    def peek(self) -> Steps[str]:
        """Returns the next character without reading it, or an empty text at the end."""
        while self._position >= len(self._text):
            if not (yield from self.more()):
                return ""
        return self._text[self._position]

    def take(self, length: int = 1) -> str:
        """Reads characters that are known to be there."""
        piece = self._text[self._position : self._position + length]
        self._position += length
        if self._held is not None:
            self._held.append(piece)
        return piece

    def remaining(self) -> str:
        """Reads and returns what has come and is unread."""
        return self.take(len(self._text) - self._position)

    def run(self, pattern: re.Pattern[str], sink: Sink = ignore) -> Steps[None]:
        """Reads as many characters as match `pattern`, which must match character by character."""
        while True:
            match = pattern.match(self._text, self._position)
            if match and match.end() > self._position:
                sink(self.take(match.end() - self._position))
            if self._position < len(self._text) or not (yield from self.more()):
                return

    def space(self, sink: Sink = ignore) -> Steps[None]:
        """Reads white space."""
        yield from self.run(_SPACE_RUN, sink)

    def word(self, pattern: re.Pattern[str]) -> Steps[str]:
        """Reads and returns as many characters as match `pattern`."""
        pieces: list[str] = []
        yield from self.run(pattern, pieces.append)
        return "".join(pieces)

    def starts_with(self, *options: str) -> Steps[str | None]:
        """Returns which of some texts is next, the longest that is; reads nothing."""
        longest = max(map(len, options))
        while True:
            rest = self._text[self._position : self._position + longest]
            found = max((option for option in options if rest.startswith(option)), key=len, default=None)
            may_grow = any(len(option) > len(rest) and option.startswith(rest) for option in options)
            if not may_grow or not (yield from self.more()):
                return found

    def literal(self, *options: str) -> Steps[str | None]:
        """Reads one of some texts, the longest that is next; None, and nothing is read, if none is."""
        found = yield from self.starts_with(*options)
        return None if found is None else self.take(len(found))

    def expect(self, *options: str) -> Steps[str]:
        """Reads one of some texts.

        Raises:
            MalformedError: none of them is next.
        """
        found = yield from self.literal(*options)
        if found is None:
            raise MalformedError
        return found

    def until(self, markers: Markers, sink: Sink) -> Steps[str | None]:
        """Reads up to and including the first marker, and returns it; what comes before goes to `sink` at once.

        Returns None at the end of the text.
        """
        while True:
            start, end = markers.search(self._text, self._position, is_ended=self._is_ended)
            if start > self._position:
                sink(self.take(start - self._position))
            if end is not None:
                return self.take(end - start)
            if not (yield from self.more()):
                return None
