"""Answers in JSON."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response


def json_response(value: Any) -> Response:
    """Returns a value as an answer."""
    return Response(orjson.dumps(value), media_type="application/json")
