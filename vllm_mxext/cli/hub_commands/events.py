"""`showing()`: progress as a bar or lines for people, as JSON lines for programs, or not at all."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from vllm_mxext.cli.hub_commands.asking import Asked
from vllm_mxext.hub import progress_display
from vllm_mxext.hub.progress import Listener, ignore


@contextmanager
def showing(asked: Asked) -> Iterator[Listener]:
    """Yields a listener that prints on standard error, as the flags of `add_events()` say."""
    if asked.own.quiet:
        yield ignore
        return
    lines, handler = logging.getLogger(progress_display.__name__), logging.StreamHandler()
    level = lines.level
    lines.addHandler(handler)
    lines.setLevel(logging.INFO)
    try:
        with progress_display.display(as_json=asked.own.json_events) as listener:
            yield listener
    finally:
        lines.removeHandler(handler)
        lines.setLevel(level)
