"""`mxext lora`: loads, lists, tries and unloads the adapters of a running server, and converts adapters' files.

Exit codes: 0 = done; 1 = the server, or the files, refused; 2 = wrong arguments; 3 = no server answers.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from vllm_mxext import builtin
from vllm_mxext.cli.connection import API_KEY_VARIABLE, DEFAULT_URL, Connection, UnreachableError

EXIT_UNREACHABLE = 3

WRITABLE_FORMATS = ("huggingface", "trtllm")
FORMATS = ("huggingface", "nemo", "trtllm", "gguf")

_COLUMNS = ("NAME", "TIER", "RANK", "FORMAT", "RUNNING", "WAITING", "MEMORY", "LOADED", "PATH", "DESCRIPTION")
_GAP = "  "
_MIN_WIDTH = 20


def run(argv: Sequence[str]) -> int:
    """Runs one command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.act(arguments)
    except UnreachableError as error:
        print(f"mxext: {error}", file=sys.stderr)
        return EXIT_UNREACHABLE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mxext lora",
        description="Load, list, try and unload the LoRA adapters of a running server; convert adapters.",
        epilog="Exit codes: 0 done, 1 refused, 2 wrong usage, 3 no server answers.",
    )
    _add_common(parser, is_default=True)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    load = _add_command(commands, "load", _load, "serve an adapter under a name")
    load.add_argument("name")
    load.add_argument(
        "path", nargs="?", help="folder or file, as the server sees it (default: the one the server knows by this name)"
    )
    load.add_argument(
        "--inplace", "--load-inplace", action="store_true", help="take the place of an adapter of the same name"
    )
    load.add_argument("--format", choices=FORMATS, help="format of its files (default: found out)")
    load.add_argument("--base-model", metavar="NAME", help="the model it was made for, for the list")
    load.add_argument("--description", metavar="TEXT", help="for the list")
    load.add_argument("--pin", action="store_true", help="keep it in memory")
    _add_command(commands, "list", _list, "show the adapters")
    test = _add_command(commands, "test", _test, "answer a prompt with and without an adapter, side by side")
    test.add_argument("name")
    test.add_argument("prompt")
    test.add_argument("--complete", action="store_true", help="continue the prompt, instead of answering it")
    test.add_argument("--max-tokens", type=int, default=64, help="output tokens at most (default: 64)")
    test.add_argument("--temperature", type=float, default=0.0, help="0 is greedy, the default")
    test.add_argument("--seed", type=int, default=0, help="of both answers (default: 0)")
    test.add_argument("--scale", type=float, help="how strongly the adapter acts (default: 1)")
    unload = _add_command(commands, "unload", _unload, "take an adapter away")
    unload.add_argument("name")
    convert = commands.add_parser(
        "convert", help="write an adapter's files in another layout", description="Needs no server."
    )
    convert.add_argument("source", type=Path, help="folder or file of the adapter")
    convert.add_argument("target", type=Path, help="folder to make")
    convert.add_argument("--to", choices=WRITABLE_FORMATS, required=True, help="layout to write")
    convert.add_argument("--model", metavar="FOLDER", help="the model that it is for (default: the built-in one)")
    convert.add_argument("--format", choices=FORMATS, help="format of its files (default: found out)")
    convert.add_argument("--allow-pickle", action="store_true", help="read files that have to be unpickled too")
    _add_json(convert, is_default=False)
    convert.set_defaults(act=_convert)
    return parser


def _add_command(
    commands: Any, name: str, act: Callable[[Connection, argparse.Namespace], None], summary: str
) -> argparse.ArgumentParser:
    """Adds a command that talks to a server."""

    def connect(arguments: argparse.Namespace) -> None:
        with Connection(arguments.url, arguments.api_key) as connection:
            act(connection, arguments)

    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary.capitalize() + ".")
    _add_common(parser, is_default=False)
    parser.set_defaults(act=connect)
    return parser


def _add_common(parser: argparse.ArgumentParser, *, is_default: bool) -> None:
    """Adds flags that may stand before and behind the command's name."""
    parser.add_argument(
        "--server-url", "--url", dest="url", metavar="URL", default=DEFAULT_URL if is_default else argparse.SUPPRESS,
        help=f"address of the server (default: {DEFAULT_URL})",
    )  # fmt: skip
    parser.add_argument(
        "--api-key", default=None if is_default else argparse.SUPPRESS,
        help=f"key to present (default: ${API_KEY_VARIABLE})",
    )  # fmt: skip
    _add_json(parser, is_default=is_default)


def _add_json(parser: argparse.ArgumentParser, *, is_default: bool) -> None:
    parser.add_argument(
        "--json", action="store_true", default=False if is_default else argparse.SUPPRESS, help="print JSON"
    )


def _load(connection: Connection, arguments: argparse.Namespace) -> None:
    fields = {
        "lora_name": arguments.name,
        "lora_path": arguments.path,
        "load_inplace": arguments.inplace,
        "lora_format": arguments.format,
        "base_model_name": arguments.base_model,
        "description": arguments.description,
        "pinned": arguments.pin,
    }
    body = {name: value for name, value in fields.items() if value not in (None, False)}
    _print_message(connection.json("POST", "/v1/load_lora_adapter", body), arguments)


def _unload(connection: Connection, arguments: argparse.Namespace) -> None:
    _print_message(connection.json("POST", "/v1/unload_lora_adapter", {"lora_name": arguments.name}), arguments)


def _print_message(answer: dict[str, Any], arguments: argparse.Namespace) -> None:
    print(json.dumps({"name": arguments.name, **answer}) if arguments.json else answer["message"])


def _list(connection: Connection, arguments: argparse.Namespace) -> None:
    answer = connection.json("GET", "/v1/lora_adapters")
    if arguments.json:
        print(json.dumps(answer, ensure_ascii=False, indent=2))
        return
    if not answer["enabled"]:
        print(answer["message"])
        return
    rows = [_COLUMNS, *map(_row, answer["data"]), *map(_available_row, answer["available"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(_GAP.join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    print(
        f"{len(answer['data'])} loaded, {answer['slots_in_use']} of {answer['max_loras']} slots in use, ranks up to "
        f"{answer['max_lora_rank']}"
    )


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    loaded = dt.datetime.fromtimestamp(entry["loaded_at"], tz=dt.timezone.utc).astimezone()
    return (
        entry["name"],
        entry["tier"] + (", pinned" if entry["pinned"] else ""),
        str(entry["rank"]),
        entry["format"] or "-",
        str(entry["requests_running"]),
        str(entry["requests_waiting"]),
        f"{entry['memory_bytes'] / 1e6:.1f} MB",
        f"{loaded:%Y-%m-%d %H:%M:%S}",
        entry["path"],
        entry["description"] or "",
    )


def _available_row(entry: dict[str, Any]) -> tuple[str, ...]:
    return (
        entry["name"], "not loaded", "-", entry["format"] or "-", "-", "-", "-", "-", entry["path"],
        entry["description"] or "",
    )  # fmt: skip


def _test(connection: Connection, arguments: argparse.Namespace) -> None:
    base = connection.first_model()
    scale = {} if arguments.scale is None else {"lora_scale": arguments.scale}
    answers = [
        (base, _answer(connection, arguments, base, {})),
        (arguments.name, _answer(connection, arguments, arguments.name, scale)),
    ]
    if arguments.json:
        shown = {"prompt": arguments.prompt, "base_model": base, "adapter": arguments.name}
        answered = {"base_answer": answers[0][1], "adapter_answer": answers[1][1]}
        print(json.dumps(shown | answered, ensure_ascii=False, indent=2))
        return
    width = max(_MIN_WIDTH, (shutil.get_terminal_size().columns - len(_GAP) - 1) // 2)
    columns = [[name, "-" * min(width, len(name)), *_wrapped(text, width)] for name, text in answers]
    for left, right in zip_longest(*columns, fillvalue=""):
        print(f"{left:<{width}}{_GAP}{right}".rstrip())


def _answer(connection: Connection, arguments: argparse.Namespace, model: str, extra: dict[str, Any]) -> str:
    fields = {name: getattr(arguments, name) for name in ("max_tokens", "temperature", "seed")}
    body = {"model": model, **fields, **extra}
    if arguments.complete:
        choice = connection.json("POST", "/v1/completions", {**body, "prompt": arguments.prompt})["choices"][0]
        return str(choice["text"])
    messages = [{"role": "user", "content": arguments.prompt}]
    choice = connection.json("POST", "/v1/chat/completions", {**body, "messages": messages})["choices"][0]
    return str(choice["message"]["content"] or "")


def _wrapped(text: str, width: int) -> list[str]:
    return [part for line in text.splitlines() for part in textwrap.wrap(line, width) or [""]]


def _convert(arguments: argparse.Namespace) -> None:
    from vllm_mxext.config.model_spec import read_model_spec  # noqa: PLC0415 - the other commands need none of this
    from vllm_mxext.lora.convert import write_adapter  # noqa: PLC0415
    from vllm_mxext.lora.source import inspect_adapter  # noqa: PLC0415

    is_builtin = arguments.model is None or arguments.model in builtin.BUILTIN_ALIASES
    model = builtin.model_path() if is_builtin else Path(arguments.model).expanduser()
    adapter = inspect_adapter(
        arguments.source.expanduser(), read_model_spec(model),
        max_rank=sys.maxsize, form=arguments.format, allows_pickle=arguments.allow_pickle,
    )  # fmt: skip
    target = arguments.target.expanduser()
    write_adapter(adapter, target, arguments.to)
    shown = {"source": str(adapter.path), "format": adapter.format, "rank": adapter.rank, "target": str(target)}
    if arguments.json:
        print(json.dumps(shown | {"to": arguments.to}))
    else:
        print(f"Wrote the adapter of '{adapter.path}' ({adapter.format}, rank {adapter.rank}) to '{target}'.")
