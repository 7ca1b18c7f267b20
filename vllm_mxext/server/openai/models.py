"""Serves `GET /v1/models`, `GET /v1/models/{id}` and `GET /model`."""

from __future__ import annotations

from typing import Any

from vllm_mxext.engine.client import AdapterInfo
from vllm_mxext.server.context import ServerContext


def list_models(context: ServerContext) -> dict[str, Any]:
    """Returns every name the server answers to: the model's, then those of its adapters."""
    cards = [_card(context, name) for name in context.client.model.served_names]
    return {"object": "list", "data": [*cards, *(_adapter_card(context, info) for info in context.client.adapters)]}


def retrieve_model(context: ServerContext, name: str) -> dict[str, Any]:
    """Returns one model.

    Raises:
        ModelNotFoundError: it is not served here.
    """
    adapter = context.adapters.resolve(name)
    return _card(context, name) if adapter is None else _adapter_card(context, context.adapters.find(adapter, None))


def describe_model(context: ServerContext) -> dict[str, Any]:
    """Returns the model's card, with every name it is served under and those of its adapters."""
    names = context.client.model.served_names
    adapters = [info.name for info in context.client.adapters]
    return {"name": names[0], "names": list(names), "adapters": adapters, **_card(context, names[0])}


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


def _adapter_card(context: ServerContext, adapter: AdapterInfo) -> dict[str, Any]:
    """Returns an adapter's card; as in vLLM its parent is a name that is served, whatever its files say."""
    served, base = context.client.model.served_names, adapter.source.base_model_name
    return {
        **_card(context, adapter.name),
        "created": int(adapter.loaded_at_s),
        "root": adapter.source.path,
        "parent": base if base in served else served[0],
    }
