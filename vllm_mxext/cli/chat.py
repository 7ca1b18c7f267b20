"""`mxext chat`: a conversation with a running server in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from typing import Any

from vllm_mxext.cli.connection import Connection, ServerError, add_connection_arguments, sampling_fields

_HELP = "/clear forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer."


def run(argv: Sequence[str]) -> int:
    """Talks until the input ends; returns the exit code."""
    parser = argparse.ArgumentParser(prog="mxext chat", description=f"Talk to a running server. {_HELP}")
    add_connection_arguments(parser)
    parser.add_argument("--system", help="system message that opens the conversation")
    arguments = parser.parse_args(argv)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401, PLC0415 - gives input() line editing and history where there is one
    with Connection(arguments.url, arguments.api_key) as connection:
        model = arguments.model or connection.first_model()
        print(f"Talking to {model}. {_HELP}", file=sys.stderr)
        opening = [{"role": "system", "content": arguments.system}] if arguments.system else []
        _converse(connection, {"model": model, **sampling_fields(arguments)}, opening)
    return 0


def _converse(connection: Connection, fields: dict[str, Any], opening: list[dict[str, str]]) -> None:
    messages = list(opening)
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D leaves)", file=sys.stderr)
            continue
        if text == "/exit":
            return
        if text == "/clear":
            messages = list(opening)
        elif text:
            messages.append({"role": "user", "content": text})
            answer = _answer(connection, {**fields, "messages": messages})
            if answer:
                messages.append({"role": "assistant", "content": answer})
            else:
                messages.pop()


def _answer(connection: Connection, body: dict[str, Any]) -> str:
    """Prints the answer as it comes and returns it; what was said before Ctrl-C counts."""
    parts: list[str] = []
    events = connection.stream("/v1/chat/completions", body)
    try:
        with contextlib.closing(events):
            for event in events:
                for choice in event.get("choices", ()):
                    parts.append(choice["delta"].get("content") or "")
                    print(parts[-1], end="", flush=True)
    except KeyboardInterrupt:
        print(" (stopped)", end="", file=sys.stderr)
    except ServerError as error:
        print(f"{error}", file=sys.stderr)
    print(flush=True)
    return "".join(parts)
