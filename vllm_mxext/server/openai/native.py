"""Serves `POST /generate`: one prompt, one text, through the machinery of `/v1/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from pydantic import model_validator
from starlette.responses import Response

from vllm_mxext.server.context import ServerContext
from vllm_mxext.server.json_response import json_response
from vllm_mxext.server.openai.completions import CompletionWriter, admit_completion
from vllm_mxext.server.openai.exchange import Exchange
from vllm_mxext.server.openai.generation import OpenGeneration
from vllm_mxext.server.openai.protocol import CompletionRequest
from vllm_mxext.server.sse import EventStream, event

_ELSEWHERE = ("logprobs", "prompt_logprobs", "logprob_token_ids", "return_token_ids", "stream_options")
"""What the answer has no place for."""


class NativeGenerateRequest(CompletionRequest):
    """Body of `POST /generate`: that of `/v1/completions`, for one prompt and one text."""

    @model_validator(mode="after")
    def _check_one_text(self) -> NativeGenerateRequest:
        is_text = isinstance(self.prompt, str)
        if not is_text and not isinstance(self.prompt[0], int):
            raise ValueError("prompt must be one string here, or one list of token ids; /v1/completions takes several")
        if self.n not in (None, 1):
            raise ValueError("n must be 1 here; /v1/completions returns several texts")
        for name in _ELSEWHERE:
            value = getattr(self, name)
            if value is not None and value is not False:
                raise ValueError(f"{name} has no place in this answer; use /v1/completions")
        return self


async def generate(context: ServerContext, request: NativeGenerateRequest, priority: int) -> Response:
    """Continues a prompt.

    Raises:
        RequestError: the request was refused.
        EngineError: the engine could not do it.
    """
    exchange, generation = await admit_completion(context, request, priority, "gen")
    writer = CompletionWriter(context, request)
    if request.stream:
        events = _events(exchange, generation, writer)
        return EventStream(events, generation.aclose, context.clock, context.config.sse_keep_alive_s)
    try:
        outputs = await generation.final_outputs()
    finally:
        await generation.aclose()
    for output in outputs:
        exchange.usage.add(output)
        exchange.log_output(output)
    (choice,) = writer.complete(outputs)["choices"]
    return json_response(_answer(exchange, choice))


async def _events(
    exchange: Exchange, generation: OpenGeneration, writer: CompletionWriter
) -> AsyncGenerator[bytes, None]:
    async with aclosing(generation.outputs()) as outputs:
        async for position, output in outputs:
            exchange.usage.add(output)
            exchange.log_output(output)
            for chunk in writer.chunks(position, output):
                yield event(_answer(exchange, chunk["choices"][0]))


def _answer(exchange: Exchange, choice: dict[str, Any]) -> dict[str, Any]:
    """Returns a text, or a stream's piece of one; only the last piece says why it ended, and what it took."""
    reason = choice["finish_reason"]
    usage = None if reason is None else exchange.usage.report()
    figures = {} if reason is None else exchange.metrics()
    return {
        "text": choice["text"],
        "metadata": {"finish_reason": reason, "model": exchange.model_name, "usage": usage, **figures},
    }
