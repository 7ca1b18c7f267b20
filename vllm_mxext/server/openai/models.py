"""Serves `GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from typing import Any

from vllm_mxext.server.context import ServerContext


def list_models(context: ServerContext) -> dict[str, Any]:
    """Returns every name the server answers to."""
    return {"object": "list", "data": [_card(context, name) for name in context.client.model.served_names]}


def retrieve_model(context: ServerContext, name: str) -> dict[str, Any]:
    """Returns one model.

    Raises:
        ModelNotFoundError: it is not served here.
    """
    return _card(context, context.served_name(name))


def _card(context: ServerContext, name: str) -> dict[str, Any]:
    model = context.client.model
    return {
        "id": name,
        "object": "model",
        "created": model.created_s,
        "owned_by": "vllm_mxext",
        "root": model.root,
        "parent": None,
        "max_model_len": model.max_model_len,
    }
