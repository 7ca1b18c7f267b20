"""Serves `POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.outputs import CompletionOutput, RequestOutput
from vllm_mxext.requests import TextPrompt
from vllm_mxext.server.context import ServerContext
from vllm_mxext.server.openai.exchange import Exchange, finish_fields, respond
from vllm_mxext.server.openai.logprobs import LogprobsFormatter
from vllm_mxext.server.openai.messages import render_conversation
from vllm_mxext.server.openai.protocol import ChatCompletionRequest
from vllm_mxext.server.openai.sampling import chat_sampling, name_chat_fields

_KINDS = ("chat.completion", "chat.completion.chunk")


async def create_chat_completion(context: ServerContext, request: ChatCompletionRequest, priority: int) -> Response:
    """Answers a conversation.

    Raises:
        RequestError: the request was refused.
        EngineError: the engine could not do it.
    """
    context.served_name(request.model)
    try:
        params = chat_sampling(request, context.client.model.default_sampling)
        prompt = await render_conversation(context, request)
        exchange = Exchange.begin(context, request, params, "chatcmpl")
        text_prompt = TextPrompt(prompt, add_special_tokens=bool(request.add_special_tokens))
        generation = await exchange.admit([text_prompt], priority)
    except InvalidRequestError as error:
        name_chat_fields(error, request)
        raise
    writer = _ChatWriter(context, request)
    return await respond(exchange, generation, writer, _KINDS)


class _ChatWriter:
    """Shapes one chat request's outputs."""

    def __init__(self, context: ServerContext, request: ChatCompletionRequest) -> None:
        last_message = request.messages[-1]
        self._request = request
        self._role = context.config.response_role if request.begins_answer else last_message.role
        self._echoed = last_message.text if request.echo and last_message.role == self._role else ""
        self._begun: set[int] = set()
        self._logprobs = LogprobsFormatter(
            context.client.tokenizer,
            -1 if request.logprob_token_ids else request.top_logprobs or 0,
            is_token_ids=bool(request.return_tokens_as_token_ids),
        )

    def chunks(self, position: int, output: RequestOutput) -> list[dict[str, Any]]:
        del position  # a conversation is one prompt
        chunks = []
        for sample in output.outputs:
            if sample.index not in self._begun:
                self._begun.add(sample.index)
                chunks.append(self._first_chunk(sample.index, output.prompt_token_ids))
                if self._echoed:
                    chunks.append(_chunk(sample.index, {"content": self._echoed}))
            if sample.text or sample.is_finished or (sample.token_ids and self._reports_tokens):
                delta = {"content": sample.text} if sample.text or not sample.is_finished else {}
                chunks.append(_chunk(sample.index, delta, self._details(sample)))
        return chunks

    def complete(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        output = outputs[0]
        choices = [
            {
                "index": sample.index,
                "message": {"role": self._role, "content": self._echoed + sample.text, "refusal": None},
                **self._details(sample),
            }
            for sample in output.outputs
        ]
        response: dict[str, Any] = {"choices": choices}
        if self._request.return_token_ids:
            response["prompt_token_ids"] = output.prompt_token_ids
        return response

    @property
    def _reports_tokens(self) -> bool:
        return bool(self._request.return_token_ids or self._request.logprobs)

    def _first_chunk(self, index: int, prompt_token_ids: list[int]) -> dict[str, Any]:
        chunk = _chunk(index, {"role": self._role, "content": ""})
        if self._request.return_token_ids:
            chunk["prompt_token_ids"] = prompt_token_ids
        return chunk

    def _details(self, sample: CompletionOutput) -> dict[str, Any]:
        details = finish_fields(sample)
        details["logprobs"] = (
            None if sample.logprobs is None else self._logprobs.chat(sample.token_ids, sample.logprobs)
        )
        if self._request.return_token_ids:
            details["token_ids"] = sample.token_ids
        return details


def _chunk(index: int, delta: dict[str, Any], details: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, **(details or {"logprobs": None, "finish_reason": None})}]}
