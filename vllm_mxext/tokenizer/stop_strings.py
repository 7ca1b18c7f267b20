"""Finding stop strings in text that arrives in pieces, without ever showing the beginning of one."""

from __future__ import annotations

from collections.abc import Sequence


class _Matcher:
    """Follows one stop string through the text (Knuth, Morris and Pratt, 1977).

    Its table grows with what has been matched: stop strings come from requests, and may be megabytes long.
    """

    __slots__ = ("_fallback", "_num_matched", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self._num_matched = 0
        self._fallback = [0]

    @property
    def num_matched(self) -> int:
        """Length of the longest end of the text that is a proper beginning of the stop string."""
        return self._num_matched

    def advance(self, char: str) -> bool:
        """Takes the next character; whether the stop string ends with it."""
        length, stop = self._longer(self._num_matched, char), self.stop
        if length > len(self._fallback):
            self._fallback.append(self._longer(self._fallback[-1], stop[length - 1]))
        is_match = length == len(stop)
        self._num_matched = self._fallback[length - 1] if is_match else length
        return is_match

    def _longer(self, length: int, char: str) -> int:
        """Returns how much of the stop string a text ends with that has ended with `length` of it, and gets `char`."""
        stop = self.stop
        while length and char != stop[length]:
            length = self._fallback[length - 1]
        return length + 1 if char == stop[length] else length


class StopStringMatcher:
    """Passes text on until a stop string is complete.

    The stop string that is complete first wins; of several that end at the same character, the longest. The result
    does not depend on how the text is cut. Text that may be the beginning of a stop string is held back: at most one
    character less than the longest one, and nothing when stop strings stay in the output.

    Args:
        stop: stop strings, none empty.
        include_in_output: keep the stop string at the end of the text.
    """

    def __init__(self, stop: Sequence[str], *, include_in_output: bool = False) -> None:
        self._matchers = [_Matcher(text) for text in stop]
        self._include_in_output = include_in_output
        self._held = ""
        self._matched: str | None = None

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text, or None so far."""
        return self._matched

    def push(self, text: str, *, can_stop: bool = True) -> str:
        """Takes new text and returns what can be shown; after a match always an empty string.

        Args:
            text: new text.
            can_stop: whether a stop string that is completed by this text counts (`min_tokens`).
        """
        if self._matched is not None:
            return ""
        if not self._matchers:
            return text
        for index, char in enumerate(text):
            # Every matcher must see every character, hence no short circuit.
            complete = [matcher.stop for matcher in self._matchers if matcher.advance(char)]
            if complete and can_stop:
                self._matched = max(complete, key=len)
                return self._end(self._held + text[: index + 1], self._matched)
        pending = self._held + text
        num_held = 0 if self._include_in_output else max(matcher.num_matched for matcher in self._matchers)
        self._held = pending[len(pending) - num_held :]
        return pending[: len(pending) - num_held]

    def flush(self) -> str:
        """Returns the text held back; call once, when no more text comes."""
        text, self._held = self._held, ""
        return text

    def _end(self, text: str, stop: str) -> str:
        self._held = ""
        return text if self._include_in_output else text[: len(text) - len(stop)]
