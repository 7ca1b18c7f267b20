"""Routes of adapters: loading, unloading, listing."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from vllm_mxext.engine.client import AdapterInfo, AdapterSource
from vllm_mxext.errors import AdapterError, UnsupportedFeatureError
from vllm_mxext.server.adapters import OFF, UPDATES_VARIABLE
from vllm_mxext.server.body import check, read_object
from vllm_mxext.server.context import ServerContext
from vllm_mxext.server.errors import ForbiddenError
from vllm_mxext.server.json_response import json_response
from vllm_mxext.server.routes.statuses import ANY, UPDATE, json_body

MAX_PATH_LENGTH = 4096
"""What systems take."""


class LoadLoRAAdapterRequest(BaseModel):
    """Body of `POST /v1/load_lora_adapter`."""

    model_config = ConfigDict(extra="ignore")

    lora_name: str | None = None
    lora_path: str | None = Field(None, max_length=MAX_PATH_LENGTH)
    load_inplace: bool | None = None
    base_model_name: str | None = Field(None, max_length=1000)
    lora_format: Literal["huggingface", "nemo", "trtllm", "gguf"] | None = None
    description: str | None = Field(None, max_length=1000)
    pinned: bool | None = None


class UnloadLoRAAdapterRequest(BaseModel):
    """Body of `POST /v1/unload_lora_adapter`."""

    model_config = ConfigDict(extra="ignore")

    lora_name: str | None = None
    lora_int_id: int | None = None


LORA_BODY_MODELS = (LoadLoRAAdapterRequest, UnloadLoRAAdapterRequest)
"""Models that the OpenAPI description refers to by name."""


def lora_router(context: ServerContext) -> APIRouter:
    """Returns the routes; those that change something refuse to where the server was not started for that."""
    router = APIRouter(tags=["LoRA"])
    read = partial(check, unsupported={}, refuses_unknown=context.config.refuses_unknown_fields)

    @router.post("/v1/load_lora_adapter", openapi_extra=json_body("LoadLoRAAdapterRequest"), responses=UPDATE)
    async def load(request: Request) -> Response:
        """Loads an adapter from a path of the server's machine, or one that the server knows by its name."""
        _check_allowed(context)
        body = read(await read_object(request), LoadLoRAAdapterRequest)
        source = AdapterSource(
            body.lora_name or "", body.lora_path or "", body.lora_format, body.base_model_name, body.description
        )
        info = await context.adapters.load(source, replaces=bool(body.load_inplace), pins=bool(body.pinned))
        return _done(f"Success: LoRA adapter '{info.name}' added successfully.")

    @router.post("/v1/unload_lora_adapter", openapi_extra=json_body("UnloadLoRAAdapterRequest"), responses=UPDATE)
    async def unload(request: Request) -> Response:
        """Takes an adapter's name away; requests that use it go on, then its memory is given back."""
        _check_allowed(context)
        body = read(await read_object(request), UnloadLoRAAdapterRequest)
        if not body.lora_name and body.lora_int_id is None:
            raise AdapterError("'lora_name' needs to be provided to unload a LoRA adapter.", param="lora_name")
        info = await context.adapters.unload(body.lora_name or None, body.lora_int_id)
        return _done(f"Success: LoRA adapter '{info.name}' removed successfully.")

    @router.get("/v1/lora_adapters", responses=ANY)
    async def adapters() -> Response:
        """Lists the loaded adapters, and those that can be loaded by name."""
        return json_response(_listing(context))

    return router


def _check_allowed(context: ServerContext) -> None:
    if not context.adapters.is_on:
        raise UnsupportedFeatureError(OFF)
    if not context.config.lora.allows_updates:
        raise ForbiddenError(
            "This server does not load or unload adapters on request; start it with "
            f"{UPDATES_VARIABLE}=true in its environment to allow it."
        )


def _done(message: str) -> Response:
    """Returns vLLM's sentence in an object, because the documented client reads every answer as JSON."""
    return json_response({"message": message})


def _listing(context: ServerContext) -> dict[str, Any]:
    model, loaded = context.client.model, context.client.adapters
    return {
        "object": "list",
        "data": [_entry(context, info) for info in loaded],
        "available": [
            {"name": one.name, "path": one.path, "format": one.format, "description": one.description}
            for one in context.adapters.available
        ],
        "enabled": context.adapters.is_on,
        "message": None if context.adapters.is_on else OFF,
        "updates_allowed": context.adapters.is_on and context.config.lora.allows_updates,
        "max_loras": model.max_loras,
        "max_lora_rank": model.max_lora_rank,
        "slots_in_use": sum(info.tier == "slot" for info in loaded),
    }


def _entry(context: ServerContext, info: AdapterInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "path": info.source.path,
        "format": info.source.format,
        "rank": info.rank,
        "tier": info.tier,
        "requests_running": info.num_running,
        "requests_waiting": info.num_waiting,
        "memory_bytes": info.num_bytes,
        "loaded_at": int(info.loaded_at_s),
        "id": info.adapter_id,
        "generation": info.generation,
        "base_model": info.source.base_model_name or context.client.model.served_names[0],
        "description": info.source.description,
        "pinned": info.is_pinned,
    }
