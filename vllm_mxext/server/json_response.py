"""JSON answers made of plain data: dataclasses, enumerations, paths and read-only mappings as they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from starlette.responses import Response


def json_response(value: Any) -> Response:
    """Returns the value as an answer; fields of dataclasses come under their names, properties do not come."""
    return Response(orjson.dumps(value, default=_plain), media_type="application/json")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
