"""Arguments of vLLM's engine methods that this version takes only when they ask for nothing."""

from __future__ import annotations

from typing import Any

from vllm_mxext.errors import UnsupportedFeatureError

_REASONS = {
    "trace_headers": "tracing comes with a later version; leave it out",
    "data_parallel_rank": "there is one engine; leave it out",
    "mm_processor_kwargs": "this version reads text only; leave it out",
    "chat_template_content_format": "the template decides by itself; leave it out",
    "profile_prefix": "profiling comes with a later version; measure with `mxext bench`",
    "level": "the engine cannot sleep in this version; close it to free its memory",
}


def refuse_arguments(**given: Any) -> None:
    """Refuses arguments that would have to be ignored.

    Raises:
        UnsupportedFeatureError: one is not None; the text says why it cannot be served.
    """
    for name, value in given.items():
        if value is not None:
            raise UnsupportedFeatureError(f"{name} cannot be served: {_REASONS[name]}.", param=name)
