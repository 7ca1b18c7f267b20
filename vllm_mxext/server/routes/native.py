"""Routes of the native API: `POST /generate` and `GET /model`."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from vllm_mxext.server.body import check, read_object
from vllm_mxext.server.context import ServerContext
from vllm_mxext.server.disconnect import run_until_disconnect
from vllm_mxext.server.json_response import json_response
from vllm_mxext.server.openai.constraints import refuse_unknown_constraints
from vllm_mxext.server.openai.models import describe_model
from vllm_mxext.server.openai.native import NativeGenerateRequest, generate
from vllm_mxext.server.openai.unsupported import COMPLETION_FIELDS
from vllm_mxext.server.routes.openai import request_priority
from vllm_mxext.server.routes.statuses import ANY, GENERATION, json_body

NATIVE_BODY_MODELS = (NativeGenerateRequest,)
"""Models that the OpenAPI description refers to by name."""


def native_router(context: ServerContext) -> APIRouter:
    """Returns the two routes."""
    router = APIRouter(tags=["Native"])
    read = partial(check, refuses_unknown=context.config.refuses_unknown_fields)

    @router.post("/generate", openapi_extra=json_body("NativeGenerateRequest"), responses=GENERATION)
    async def generate_route(request: Request) -> Response:
        """Continues one prompt, as a whole or as a stream of server-sent events."""
        value = await read_object(request)
        refuse_unknown_constraints(value)
        body = read(value, NativeGenerateRequest, COMPLETION_FIELDS)
        priority = request_priority(request, body.priority)
        return await run_until_disconnect(request.receive, generate(context, body, priority))

    @router.head("/model", include_in_schema=False)
    @router.get("/model", responses=ANY)
    async def model() -> Response:
        """Describes the model: its names, its adapters, how long prompt and output may be together."""
        return json_response(describe_model(context))

    return router
