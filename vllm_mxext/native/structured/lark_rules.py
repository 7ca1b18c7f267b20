"""The rules of a Lark grammar while it is being written."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping

from vllm_mxext.errors import InvalidRequestError

_MAX_RULES = 20_000
_ANY_TEXT = "/(.|\\n)*/"


class LarkRules:
    """Collects rules and gives them names; a rule that is asked for again is the same one.

    Args:
        special_tokens: text -> id of tokens that are not text; where a literal contains one, the token is meant.
        end_token_ids: those of them that end an output.
    """

    def __init__(self, special_tokens: Mapping[str, int], end_token_ids: Collection[int] = ()) -> None:
        self._special_tokens = special_tokens
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._end_ids = frozenset(end_token_ids)
        self._names: dict[tuple[str, str], str] = {}

    def write(self, start: str) -> str:
        """Returns the whole grammar, which begins with an expression."""
        rules = [f"{name}{options}: {body}" for (body, options), name in self._names.items()]
        return "\n".join([f"start: {start}", f"TEXT: {_ANY_TEXT}", *rules, ""])

    def rule(self, body: str, options: str = "") -> str:
        """Returns the name of a rule."""
        return self._name(body, options, "r")

    def terminal(self, body: str) -> str:
        """Returns the name of a regular expression, in which terminals can be combined with `&` and `~`."""
        return self._name(body, "", "T")

    def recursive(self, name: str, body: str) -> str:
        """Adds a rule with a name of its own, so that bodies can refer to it; returns the name."""
        self._names[body, ""] = name
        return name

    def _name(self, body: str, options: str, prefix: str) -> str:
        key = body, options
        if key not in self._names:
            if len(self._names) == _MAX_RULES:
                raise InvalidRequestError(
                    "The structural tag is too large; make it smaller.", param="structured_outputs"
                )
            self._names[key] = f"{prefix}{len(self._names)}"
        return self._names[key]

    def text(self, excludes: Iterable[str] = (), excluded_beginnings: Iterable[str] = ()) -> str:
        """Returns the terminal of text that contains none of some texts, and begins with none of some others."""
        rules = ["TEXT"]
        if contained := alternatives(excludes):
            rules.append(f"~/(.|\\n)*({contained})(.|\\n)*/")
        if first := alternatives(excluded_beginnings):
            rules.append(f"~/[ \\t\\r\\n]*({first})(.|\\n)*/")
        return "TEXT" if len(rules) == 1 else self.terminal(" & ".join(rules))

    def until(self, text: str, end: str) -> str:
        """Returns a rule of a terminal's text up to and including the first `end`."""
        before, first, _ = self._cut(end)
        if not first:
            return self.rule(f"{text} {_quoted(end)}", "[lazy]")
        if before:
            raise InvalidRequestError(
                f"The structural tag has {end[:40]!r}, in which text comes before the special token {first}.",
                param="structured_outputs",
            )
        return self.rule(f"{text} {self.literal(end)}")

    def ended(self, terminal: str, end: str) -> str:
        """Returns the expression of a terminal and the text behind it, of which no part is taken for the terminal's."""
        before, first, after = self._cut(end)
        whole = self.terminal(f"{terminal} {_quoted(before)}") if before else terminal
        return f"{whole} {self.literal(first + after)}".strip()

    def literal(self, text: str) -> str:
        """Returns the expression of a text, in which special tokens stand for themselves.

        Tokens that end an output are left out: they may come where the grammar can end, and nothing follows them.
        """
        parts, position = [], 0
        for match in self._special.finditer(text) if self._special else ():
            token_id = self._special_tokens[match.group()]
            parts += [_quoted(text[position : match.start()]), "" if token_id in self._end_ids else f"<[{token_id}]>"]
            position = match.end()
        parts.append(_quoted(text[position:]))
        return " ".join(part for part in parts if part)

    def tokens_beside(self, texts: Iterable[str]) -> list[int]:
        """Returns the special tokens that occur in none of some texts and do not end an output."""
        used = {match for text in texts for match in (self._special.findall(text) if self._special else ())}
        ids = (one for name, one in self._special_tokens.items() if name not in used)
        return sorted(one for one in ids if one not in self._end_ids)

    def _cut(self, text: str) -> tuple[str, str, str]:
        """Returns what comes before a text's first special token, the token, and what follows."""
        match = self._special.search(text) if self._special else None
        return (text, "", "") if match is None else (text[: match.start()], match[0], text[match.end() :])


def lark_string(text: str) -> str:
    """Writes a text as a Lark string."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")


def lark_regex(pattern: str) -> str:
    """Writes a regular expression between slashes."""
    body = re.sub(
        r"\\.|/|\n", lambda match: {"/": r"\/", "\n": r"\n"}.get(match[0], match[0]), pattern, flags=re.DOTALL
    )
    return f"/{body}/"


def alternatives(texts: Iterable[str]) -> str:
    """Returns a regular expression, for Lark and Python, of some texts as they are."""
    return "|".join("".join(map(_plain, text)) for text in texts)


def _plain(char: str) -> str:
    return char if char.isalnum() or ord(char) > 0x7F else f"\\x{ord(char):02X}"


def _quoted(text: str) -> str:
    return lark_string(text) if text else ""
