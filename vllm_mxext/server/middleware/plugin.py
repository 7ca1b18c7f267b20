"""Middleware of the operator's own, named by import path."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

from vllm_mxext.errors import ConfigError


def load_middleware(path: str) -> Middleware:
    """Returns the layer that `--middleware` names: an ASGI class, or a coroutine function (request, call_next).

    Raises:
        ConfigError: there is no such thing, or it is neither.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--middleware '{path}' cannot be imported: {error}.") from None
    if inspect.isclass(found):
        layer: Any = found
        return Middleware(layer)
    if inspect.iscoroutinefunction(found):
        return Middleware(BaseHTTPMiddleware, dispatch=found)
    raise ConfigError(f"--middleware '{path}' must name a class or a coroutine function (request, call_next).")
