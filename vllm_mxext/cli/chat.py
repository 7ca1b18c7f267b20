"""`mxext chat`: a conversation in the terminal, with a running server or a model loaded here."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vllm_mxext.cli.connection import sampling_fields
from vllm_mxext.cli.talkers import Message, Talker, add_talker_arguments, make_talker
from vllm_mxext.errors import MxError

_BLOCK = '"""'
_SHORTEST_S = 0.01
"""In less time several tokens came as one; their speed is that of the reading."""
_HINT = 'Type /help for commands; """ opens and closes a text of several lines; Ctrl-C stops an answer, Ctrl-D leaves.'


def run(argv: Sequence[str]) -> int:
    """Talks until the input ends; returns the exit code."""
    parser = argparse.ArgumentParser(prog="mxext chat", description=f"Talk to a model. {_HINT}")
    add_talker_arguments(parser)
    parser.add_argument("--system", help="system message that opens the conversation")
    arguments, flags = parser.parse_known_args(argv)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401, PLC0415 - gives input() line editing and history where there is one
    with make_talker(arguments, flags) as talker:
        print(f"Talking to {talker.name}. {_HINT}", file=sys.stderr)
        Conversation(talker, sampling_fields(arguments), arguments.system).run()
    return 0


class Conversation:
    """A conversation and its commands.

    Args:
        talker: who answers.
        fields: sampling fields of every request.
        system: text of the system message, if there is one.
    """

    def __init__(self, talker: Talker, fields: dict[str, Any], system: str | None = None) -> None:
        self._talker = talker
        self._fields = fields
        self._system = system
        self._messages: list[Message] = []
        self._commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/help": (self._help, "show this list"),
            "/clear": (self._clear, "forget the conversation"),
            "/system": (self._set_system, "TEXT  open the conversation with this system message; nothing removes it"),
            "/save": (self._save, "FILE  write the conversation as JSON"),
            "/load": (self._load, "FILE  go on with a conversation"),
            "/set": (self._set, "NAME VALUE  set a sampling field, such as temperature 0.7; no value removes it"),
        }

    def run(self) -> None:
        """Reads and answers until the input ends or says /quit."""
        while True:
            try:
                text = _read()
            except EOFError:
                return
            except KeyboardInterrupt:
                print("\n(Ctrl-D leaves)", file=sys.stderr)
                continue
            name, _, argument = text.partition(" ")
            if name in ("/quit", "/exit", "/bye"):
                return
            if name in self._commands:
                self._commands[name][0](argument.strip())
            elif name.startswith("/") and name[1:].isalpha():
                _say(f"There is no command {name}; /help lists those there are.")
            elif text:
                self._take_turn(text)

    def _take_turn(self, text: str) -> None:
        """Answers; a turn that brought nothing is forgotten."""
        self._messages.append({"role": "user", "content": text})
        answer = self._answer()
        if answer:
            self._messages.append({"role": "assistant", "content": answer})
        else:
            self._messages.pop()

    def _answer(self) -> str:
        """Prints the answer as it comes and returns it; what was said before Ctrl-C counts."""
        parts: list[str] = []
        num_tokens, began_s, note = 0, time.monotonic(), ""
        first_s: float | None = None
        try:
            with contextlib.closing(self._talker.chat(self._opened(), self._fields)) as pieces:
                for piece in pieces:
                    num_tokens = max(num_tokens, piece.num_tokens)
                    if piece.text and first_s is None:
                        first_s = time.monotonic()
                    parts.append(piece.text)
                    print(piece.text, end="", flush=True)
        except KeyboardInterrupt:
            note = "stopped, "
        except MxError as error:
            _say(str(error))
        print(flush=True)
        if first_s is not None:
            _say(f"({note}{_rate(num_tokens, began_s, first_s, time.monotonic())})")
        return "".join(parts)

    def _opened(self) -> list[Message]:
        opening = [{"role": "system", "content": self._system}] if self._system else []
        return [*opening, *self._messages]

    def _help(self, argument: str) -> None:
        del argument
        for name, (_, text) in self._commands.items():
            print(f"{name:<8} {text}")
        print(f"{'/quit':<8} leave")
        print(_HINT)

    def _clear(self, argument: str) -> None:
        del argument
        self._messages.clear()

    def _set_system(self, argument: str) -> None:
        self._system = argument or None

    def _save(self, argument: str) -> None:
        try:
            text = json.dumps(self._opened(), indent=2, ensure_ascii=False) + "\n"
            Path(argument).expanduser().write_text(text, encoding="utf-8")
        except OSError as error:
            _say(f"'{argument}' cannot be written: {error.strerror}.")

    def _load(self, argument: str) -> None:
        try:
            messages = json.loads(Path(argument).expanduser().read_text(encoding="utf-8"))
        except OSError as error:
            _say(f"'{argument}' cannot be read: {error.strerror}.")
            return
        except ValueError:
            messages = None
        if not isinstance(messages, list) or not all(
            isinstance(message, dict) and "role" in message for message in messages
        ):
            _say(f"'{argument}' is no conversation: it must be a JSON list of messages, as /save writes it.")
            return
        self._system = None
        self._messages = messages

    def _set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        if not name:
            print(json.dumps(self._fields))
        elif not value.strip():
            self._fields.pop(name, None)
        else:
            try:
                self._fields[name] = json.loads(value)
            except ValueError:
                self._fields[name] = value.strip()


def _read() -> str:
    """Reads one message: a line, lines joined by backslashes at their ends, or a block between triple quotes."""
    text = input("> ").strip()
    if text.startswith(_BLOCK):
        lines = [text.removeprefix(_BLOCK)]
        while _BLOCK not in lines[-1]:
            lines.append(input("... "))
        lines[-1] = lines[-1].partition(_BLOCK)[0]
        return "\n".join(lines).strip()
    while text.endswith("\\"):
        text = text[:-1] + "\n" + input("... ").rstrip()
    return text


def _rate(num_tokens: int, began_s: float, first_s: float, now_s: float) -> str:
    """Describes an answer's speed: the tokens after the first one over the time they took, if it can be told."""
    took_s = now_s - first_s
    speed = f", {(num_tokens - 1) / took_s:.1f} tokens/s" if num_tokens > 1 and took_s >= _SHORTEST_S else ""
    return f"{num_tokens} tokens{speed}, first after {first_s - began_s:.2f} s"


def _say(text: str) -> None:
    print(text, file=sys.stderr)
