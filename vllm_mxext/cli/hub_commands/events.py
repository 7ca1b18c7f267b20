"""`showing()`: progress as a bar or lines for people, as JSON lines for programs, or not at all."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from vllm_mxext.cli.hub_commands.asking import Asked
from vllm_mxext.hub.as_json import progress_as_json
from vllm_mxext.hub.progress import Listener, Progress, ignore


@contextmanager
def showing(asked: Asked) -> Iterator[Listener]:
    """Yields a listener that prints on standard error, as the flags of `add_events()` say."""
    if asked.own.quiet:
        yield ignore
    elif asked.own.json_events:
        yield _print_event
    else:
        from vllm_mxext.hub.progress_display import display  # noqa: PLC0415 - not needed by programs

        with display() as listener:
            yield listener


def _print_event(progress: Progress) -> None:
    sys.stderr.write(f"{json.dumps(progress_as_json(progress), ensure_ascii=False)}\n")
