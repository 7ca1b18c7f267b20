"""Request fields we know and cannot honour yet: refused unless neutral, for ignoring one would change the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vllm_mxext.errors import UnsupportedFeatureError


def _any_of(*values: Any) -> Callable[[Any], bool]:
    return lambda value: any(type(value) is type(one) and value == one for one in values)


_never = _any_of()
_off = _any_of(False)

GENERATION_FIELDS: dict[str, Callable[[Any], bool]] = {
    # constraints on the output
    "logits_processors": _never,
    # other ways to sample
    "samplers": _never,
    # the prompt
    "prompt_embeds": _never,
    "mm_processor_kwargs": _never,
    "media_io_kwargs": _never,
    # the response, and how it is served
    "return_prompt_text": _off,
    "kv_transfer_params": _never,
    "ec_transfer_params": _never,
}
"""Field -> whether a value (not null, not empty) means what the server does anyway."""

CHAT_FIELDS = GENERATION_FIELDS | {
    "modalities": _any_of(["text"]),
    "audio": _never,
    "web_search_options": _never,
}

COMPLETION_FIELDS = GENERATION_FIELDS | {"suffix": _never}

TOKENIZE_FIELDS: dict[str, Callable[[Any], bool]] = {"mm_processor_kwargs": _never}


def refuse_unsupported(body: Mapping[str, Any], fields: Mapping[str, Callable[[Any], bool]]) -> None:
    """Looks for fields that the server knows but cannot honour.

    Raises:
        UnsupportedFeatureError: there is one that would change the answer; `param` names it.
    """
    for field in body.keys() & fields.keys():
        value = body[field]
        is_empty = value in ("", [], {})
        if value is None or is_empty or fields[field](value):
            continue
        raise UnsupportedFeatureError(
            f"This server does not support `{field}` yet, and ignoring it would change the answer; "
            "leave the field out of the request.",
            param=field,
        )
