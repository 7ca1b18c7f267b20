"""Routes of the OpenAI API."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.server.body import check, read_object
from vllm_mxext.server.context import ServerContext
from vllm_mxext.server.disconnect import run_until_disconnect
from vllm_mxext.server.openai.chat import create_chat_completion
from vllm_mxext.server.openai.completions import create_completion
from vllm_mxext.server.openai.constraints import refuse_unknown_constraints
from vllm_mxext.server.openai.models import list_models, retrieve_model
from vllm_mxext.server.openai.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizeTextRequest,
)
from vllm_mxext.server.openai.rendering import render_chat, render_completion
from vllm_mxext.server.openai.tokenization import detokenize, tokenize
from vllm_mxext.server.openai.unsupported import CHAT_FIELDS, COMPLETION_FIELDS, TOKENIZE_FIELDS
from vllm_mxext.server.routes.statuses import ANY, GENERATION, NAMED, WITH_BODY, json_body

BODY_MODELS = (
    ChatCompletionRequest,
    CompletionRequest,
    TokenizeTextRequest,
    TokenizeChatRequest,
    DetokenizeRequest,
)
"""Models that the OpenAPI description refers to by name."""


def openai_router(context: ServerContext) -> APIRouter:
    """Returns the routes under `/v1`, and `/tokenize` and `/detokenize`."""
    router = APIRouter(tags=["OpenAI"])
    read = partial(check, refuses_unknown=context.config.refuses_unknown_fields)

    @router.post("/v1/chat/completions", openapi_extra=json_body("ChatCompletionRequest"), responses=GENERATION)
    async def chat_completions(request: Request) -> Response:
        """Answers a conversation, as a whole or as a stream of server-sent events."""
        value = await read_object(request)
        refuse_unknown_constraints(value)
        body = read(value, ChatCompletionRequest, CHAT_FIELDS)
        priority = request_priority(request, body.priority)
        return await run_until_disconnect(request.receive, create_chat_completion(context, body, priority))

    @router.post("/v1/completions", openapi_extra=json_body("CompletionRequest"), responses=GENERATION)
    async def completions(request: Request) -> Response:
        """Continues one or several prompts, as a whole or as a stream of server-sent events."""
        value = await read_object(request)
        refuse_unknown_constraints(value)
        body = read(value, CompletionRequest, COMPLETION_FIELDS)
        priority = request_priority(request, body.priority)
        return await run_until_disconnect(request.receive, create_completion(context, body, priority))

    @router.head("/v1/models", include_in_schema=False)
    @router.get("/v1/models", responses=ANY)
    async def models() -> Response:
        """Lists the names the server answers to."""
        return _json(list_models(context))

    @router.head("/v1/models/{model_id:path}", include_in_schema=False)
    @router.get("/v1/models/{model_id:path}", responses=NAMED)
    async def model(model_id: str) -> Response:
        """Describes one of them; the name may contain slashes."""
        if not model_id:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return _json(retrieve_model(context, model_id))

    @router.post(
        "/tokenize", openapi_extra=json_body("TokenizeTextRequest", "TokenizeChatRequest"), responses=WITH_BODY
    )
    async def tokenize_route(request: Request) -> Response:
        """Returns the tokens of a text (`prompt`) or a conversation (`messages`)."""
        value = await read_object(request)
        if ("prompt" in value) == ("messages" in value):
            raise InvalidRequestError("Send either prompt or messages.", param="prompt")
        body: TokenizeChatRequest | TokenizeTextRequest
        if "messages" in value:
            body = read(value, TokenizeChatRequest, TOKENIZE_FIELDS)
        else:
            body = read(value, TokenizeTextRequest, TOKENIZE_FIELDS)
        return _json(await run_until_disconnect(request.receive, tokenize(context, body)))

    @router.post("/detokenize", openapi_extra=json_body("DetokenizeRequest"), responses=WITH_BODY)
    async def detokenize_route(request: Request) -> Response:
        """Returns the text of tokens."""
        body = read(await read_object(request), DetokenizeRequest, {})
        return _json(await run_until_disconnect(request.receive, detokenize(context, body)))

    @router.post("/v1/chat/completions/render", openapi_extra=json_body("ChatCompletionRequest"), responses=WITH_BODY)
    async def chat_render(request: Request) -> Response:
        """Returns the prompt that a chat completion would have, as text and token ids."""
        value = await read_object(request)
        refuse_unknown_constraints(value)
        body = read(value, ChatCompletionRequest, CHAT_FIELDS)
        return _json(await run_until_disconnect(request.receive, render_chat(context, body)))

    @router.post("/v1/completions/render", openapi_extra=json_body("CompletionRequest"), responses=WITH_BODY)
    async def completion_render(request: Request) -> Response:
        """Returns the prompts that a completion would have, as text and token ids."""
        value = await read_object(request)
        refuse_unknown_constraints(value)
        body = read(value, CompletionRequest, COMPLETION_FIELDS)
        return _json(await run_until_disconnect(request.receive, render_completion(context, body)))

    return router


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


def request_priority(request: Request, given: int | None) -> int:
    """Returns a request's priority, from its body or else its header."""
    if given is not None:
        return given
    header = request.headers.get("x-vllm-priority", "0")
    try:
        return int(header)
    except ValueError:
        raise InvalidRequestError(
            f"The header X-Vllm-Priority must be an integer, got {header[:40]!r}.", param="priority"
        ) from None
