"""Hints: why a server failed to start, concluded from its log, and what to do about it."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable

from vllm_mxext.registry.ports import owner
from vllm_mxext.registry.record import NATIVE, ServerRecord

_IN_USE = re.compile(r"address already in use|port \d+ .*is in use|EADDRINUSE", re.IGNORECASE)
_PACKAGE = re.compile(r"No module named '([\w.]+)'|\bpip install\b")
_MEMORY = re.compile(
    r"out of memory|cannot allocate|MemoryError|not enough memory|memory plan|needs? .*GiB", re.IGNORECASE
)
_MODEL = re.compile(
    r"there is no model|no such file|not found|does not exist|is not a (local )?folder|unsupported .*architecture|"
    r"architecture .*not supported|config\.json",
    re.IGNORECASE,
)
_FLAG = re.compile(r"unknown flag|unrecognized arguments|invalid choice", re.IGNORECASE)
_NETWORK = re.compile(r"cannot be reached|name resolution|connection (refused|error)|timed out|offline", re.IGNORECASE)
_PERMISSION = re.compile(r"permission denied|not allowed|\b40[13]\b|\bgated\b", re.IGNORECASE)


def hint(record: ServerRecord, port: int, exit_code: int | None, lines: tuple[str, ...]) -> str:
    """Returns one sentence that says what to do; empty if the log gives no clue.

    Args:
        record: the server.
        port: the port that it was to listen on.
        exit_code: how it ended; negative is the number of a signal; None if unknown.
        lines: the end of its log.
    """
    last = lines[-1] if lines else ""
    for text in (last, "\n".join(lines)):  # if the last line names a cause, it is the real one
        found = _by_text(record, port, text)
        if found:
            return found
    if exit_code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return (
            "It was killed from outside, most often by the system because memory ran out; choose a smaller model or "
            f"lower 'mxext server edit {record.name} --max-model-len'."
        )
    return ""


def _by_text(record: ServerRecord, port: int, text: str) -> str:
    for pattern, advise in _CAUSES:
        match = pattern.search(text)
        if match is not None:
            return advise(record, port, match)
    return ""


def _about_port(record: ServerRecord, port: int, _match: re.Match[str]) -> str:
    return (
        f"Port {port} is taken by {owner(port)}; end that one, or choose another port with 'mxext server edit "
        f"{record.name} --port'."
    )


def _about_package(record: ServerRecord, _port: int, match: re.Match[str]) -> str:
    named = f" ({match[1]})" if match[1] else ""
    return f"A package is missing{named}; install it into the environment of the backend {record.kind}."


def _about_flag(record: ServerRecord, _port: int, _match: re.Match[str]) -> str:
    return f"The server rejected a flag; check its --extra-args with 'mxext server show {record.name}'."


def _about_memory(record: ServerRecord, _port: int, _match: re.Match[str]) -> str:
    return (
        f"There is not enough memory; ask for less with 'mxext server edit {record.name} --max-model-len' or "
        "'--gpu-memory-utilization'."
    )


def _about_permission(_record: ServerRecord, _port: int, _match: re.Match[str]) -> str:
    return "Permission to read the model or a file is missing; if the model is gated, export HF_TOKEN before 'start'."


def _about_network(_record: ServerRecord, _port: int, _match: re.Match[str]) -> str:
    return "The model's source cannot be reached; check the network, or name a local folder with --model-path."


def _about_model(record: ServerRecord, _port: int, _match: re.Match[str]) -> str:
    edit = f"mxext server edit {record.name}"
    if record.kind != NATIVE:
        return f"The model '{record.model_path}' was not found; name another one with '{edit} --model-path'."
    return (
        f"The native backend cannot serve '{record.model_path}': it takes a folder, ORG/NAME or a name that 'mxext hub "
        "list-profiles' prints, of the families Llama, Mistral, Qwen2 and Qwen3; choose one with "
        f"'{edit} --model-path' ('builtin' needs no download)."
    )


_CAUSES: tuple[tuple[re.Pattern[str], Callable[[ServerRecord, int, re.Match[str]], str]], ...] = (
    (_IN_USE, _about_port),
    (_PACKAGE, _about_package),
    (_FLAG, _about_flag),
    (_MEMORY, _about_memory),
    (_PERMISSION, _about_permission),
    (_NETWORK, _about_network),
    (_MODEL, _about_model),
)
"""Pattern of a log's text -> the hint for it, the most certain first."""
