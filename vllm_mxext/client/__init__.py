"""A client that survives bad servers and bad networks, for this server and every other with OpenAI's API."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_mxext.client.async_client import AsyncVllmClient
    from vllm_mxext.client.handlers import (
        create_vllm_endpoint_handler,
        create_vllm_endpoint_handler_with_params,
        format_request_with_params,
        format_structured_request,
        get_model_info,
        get_model_statistics,
        process_batch,
        process_batch_with_metrics,
        process_batch_with_params,
    )
    from vllm_mxext.client.optimization import optimize_model
    from vllm_mxext.client.sdk import VllmMxextClient
    from vllm_mxext.client.sharing import BatchSettings
    from vllm_mxext.client.vllm_client import VllmClient

__all__ = [
    "AsyncVllmClient",
    "BatchSettings",
    "VllmClient",
    "VllmMxextClient",
    "create_vllm_endpoint_handler",
    "create_vllm_endpoint_handler_with_params",
    "format_request_with_params",
    "format_structured_request",
    "get_model_info",
    "get_model_statistics",
    "optimize_model",
    "process_batch",
    "process_batch_with_metrics",
    "process_batch_with_params",
]

_MODULES = {
    "AsyncVllmClient": "async_client",
    "BatchSettings": "sharing",
    "VllmClient": "vllm_client",
    "VllmMxextClient": "sdk",
    "optimize_model": "optimization",
}
"""Exported name -> module that it is imported from on first use; all others are of `handlers`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'handlers')}")
    return getattr(module, name)
