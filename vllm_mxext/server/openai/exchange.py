"""What chat and plain completions share: identity, admission, and turning outputs into a response."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson
from starlette.responses import Response

from vllm_mxext.beam_search_params import BeamSearchParams
from vllm_mxext.logger import current_request_id, init_logger
from vllm_mxext.outputs import CompletionOutput, RequestOutput
from vllm_mxext.requests import BeamSearchRequest, GenerateRequest, Prompt, TokensPrompt
from vllm_mxext.sampling_params import SamplingParams
from vllm_mxext.server.context import ServerContext
from vllm_mxext.server.openai.adapter_choice import AdapterChoice, choose_adapter
from vllm_mxext.server.openai.generation import OpenGeneration
from vllm_mxext.server.openai.protocol import GenerationRequest
from vllm_mxext.server.openai.usage import UsageCounter
from vllm_mxext.server.sse import EventStream, event

logger = init_logger(__name__)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request's identity, as every part of its response repeats it.

    Attributes:
        context: the server's parts.
        request: the checked request.
        params: its sampling parameters.
        response_id: `id` of the response.
        model_name: name the request asked for.
        adapter: LoRA adapter to use, with its scale.
        created_s: Unix time of the response.
        usage: token counts so far.
    """

    context: ServerContext
    request: GenerationRequest
    params: SamplingParams | BeamSearchParams
    response_id: str
    model_name: str
    adapter: AdapterChoice
    created_s: int = field(default_factory=lambda: int(time.time()))
    usage: UsageCounter = field(default_factory=UsageCounter)
    _texts: dict[tuple[str, int], list[str]] = field(default_factory=dict)

    @classmethod
    def begin(
        cls,
        context: ServerContext,
        request: GenerationRequest,
        params: SamplingParams | BeamSearchParams,
        prefix: str,
    ) -> Exchange:
        """Names the exchange after the request id that the client or the server gave it."""
        request_id = request.request_id or current_request_id() or uuid.uuid4().hex
        adapter = choose_adapter(context, request)
        return cls(context, request, params, f"{prefix}-{request_id}", context.served_name(request.model), adapter)

    def head(self, kind: str) -> dict[str, Any]:
        """Returns the fields that open a response or chunk."""
        return {
            "id": self.response_id,
            "object": kind,
            "created": self.created_s,
            "model": self.model_name,
            "system_fingerprint": self.context.fingerprint,
        }

    async def admit(self, prompts: Sequence[Prompt], priority: int) -> OpenGeneration:
        """Submits one request per prompt.

        Raises:
            RequestError: a request was refused; none stays open.
            EngineError: the engine takes none.
        """
        if self.context.config.log_requests:
            logger.info("Received %s: %d prompt(s), %s", self.response_id, len(prompts), self.params)
        if logger.isEnabledFor(logging.DEBUG):
            for prompt in prompts:
                logger.debug("Prompt of %s: %s", self.response_id, _excerpt(prompt, self.context.config.max_log_len))
        suffix = uuid.uuid4().hex[:8]  # two open requests of one client may carry the same id
        requests = [
            self._engine_request(f"{self.response_id}-{suffix}-{index}", prompt, priority)
            for index, prompt in enumerate(prompts)
        ]
        return await OpenGeneration.admit(self.context.client, requests)

    async def count_reasoning(self, writer: ResponseWriter) -> None:
        """Counts the reasoning tokens of the samples that have ended, for the usage."""
        texts = writer.reasoning
        if texts is not None:
            encode = self.context.client.tokenizer.encode
            counts = await self.context.run_in_thread(
                lambda: [len(encode(text, add_special_tokens=False)) for text in texts if text]
            )
            self.usage.set_reasoning(sum(counts))

    def metrics(self) -> dict[str, Any]:
        """Returns the field with the request's times, if the server reports them."""
        if not self.context.config.reports_metrics:
            return {}
        if isinstance(self.params, BeamSearchParams):
            return {"metrics": None}
        max_drafts = self.context.client.model.num_draft_tokens
        return {"metrics": self.usage.metrics(self.params.num_samples, max_drafts)}

    def log_output(self, output: RequestOutput) -> None:
        """Logs what came, if the server logs outputs; a stream's text comes in pieces."""
        if self.context.config.log_outputs:
            for sample in output.outputs:
                self._texts.setdefault((output.request_id, sample.index), []).append(sample.text)
                if sample.is_finished:
                    text = "".join(self._texts.pop((output.request_id, sample.index)))
                    shown = text[: self.context.config.max_log_len]
                    logger.info("Output %d of %s (%s): %r", sample.index, self.response_id, sample.finish_reason, shown)

    def _engine_request(self, request_id: str, prompt: Prompt, priority: int) -> GenerateRequest | BeamSearchRequest:
        cache_salt, timeout_s = self.request.cache_salt, _seconds(self.request.timeout_ms)
        name, scale = self.adapter
        if isinstance(self.params, BeamSearchParams):
            return BeamSearchRequest(request_id, prompt, self.params, priority, cache_salt, timeout_s, name, scale)
        limit_ms = self.request.t_max_predict_ms
        limit_s = _seconds(limit_ms) if limit_ms is not None and limit_ms > 0 else None  # llama.cpp: <= 0 is off
        return GenerateRequest(
            request_id, prompt, self.params, priority, cache_salt, timeout_s, limit_s, name, adapter_scale=scale
        )


class ResponseWriter(Protocol):
    """Shapes outputs for one endpoint."""

    def chunks(self, position: int, output: RequestOutput) -> list[dict[str, Any]]:
        """Returns the choices of the stream's next chunks, one chunk each, with the fields beside them."""
        ...

    def complete(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """Returns the fields of the whole response besides its head and usage."""
        ...

    @property
    def reasoning(self) -> Sequence[str] | None:
        """Reasoning of each sample, or None if the server does not look for any."""
        ...


async def respond(
    exchange: Exchange, generation: OpenGeneration, writer: ResponseWriter, kinds: tuple[str, str]
) -> Response:
    """Answers an admitted exchange, as a stream or as a whole.

    Args:
        exchange: the request's identity.
        generation: its open requests; closed here, or by the stream when it ends.
        writer: shapes the outputs.
        kinds: `object` of the whole response, and of a chunk.
    """
    context = exchange.context
    if exchange.request.stream:
        return EventStream(
            _events(exchange, generation, writer, kinds[1]),
            generation.aclose,
            context.clock,
            context.config.sse_keep_alive_s,
        )
    try:
        outputs = await generation.final_outputs()
    finally:
        await generation.aclose()
    for output in outputs:
        exchange.usage.add(output)
        exchange.log_output(output)
    parts = writer.complete(outputs)
    await exchange.count_reasoning(writer)
    body = {
        **exchange.head(kinds[0]),
        **parts,
        "service_tier": None,
        "usage": exchange.usage.report(),
        **exchange.metrics(),
    }
    return Response(orjson.dumps(body), media_type="application/json")


async def _events(
    exchange: Exchange, generation: OpenGeneration, writer: ResponseWriter, kind: str
) -> AsyncGenerator[bytes, None]:
    head, usage = exchange.head(kind), exchange.usage
    includes_usage = exchange.request.includes_usage or exchange.context.config.always_includes_usage
    includes_usage_in_chunks = exchange.request.includes_usage_in_chunks
    async with aclosing(generation.outputs()) as outputs:
        async for position, output in outputs:
            usage.add(output)
            exchange.log_output(output)
            parts = []
            for chunk in writer.chunks(position, output):
                if includes_usage:
                    chunk["usage"] = usage.report() if includes_usage_in_chunks else None
                parts.append(event(head | chunk))
            if parts:
                yield b"".join(parts)
    if includes_usage:
        await exchange.count_reasoning(writer)
        yield event(head | {"choices": [], "usage": usage.report(), **exchange.metrics()})


def names_tokens_by_id(context: ServerContext, request: GenerationRequest) -> bool:
    """Whether log probabilities name tokens by id; the server's own choice unless the request makes one."""
    asked = request.return_tokens_as_token_ids
    return context.config.returns_tokens_as_ids if asked is None else asked


def finish_fields(sample: CompletionOutput) -> dict[str, Any]:
    """Returns how a sample ended, or that it has not."""
    return {"finish_reason": sample.finish_reason, "stop_reason": sample.stop_reason}


def _excerpt(prompt: Prompt, max_len: int | None) -> str:
    shown = prompt.token_ids if isinstance(prompt, TokensPrompt) else prompt.text
    return repr(shown[:max_len])


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
