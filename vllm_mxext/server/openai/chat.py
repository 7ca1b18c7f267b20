"""Serves `POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.outputs import CompletionOutput, RequestOutput
from vllm_mxext.requests import TextPrompt
from vllm_mxext.sampling_params import SamplingParams
from vllm_mxext.server.context import ServerContext
from vllm_mxext.server.openai.exchange import Exchange, finish_fields, names_tokens_by_id, respond
from vllm_mxext.server.openai.forced_calls import planned
from vllm_mxext.server.openai.logprobs import LogprobsFormatter
from vllm_mxext.server.openai.messages import render_conversation
from vllm_mxext.server.openai.output_plan import OutputPlan, plan_output
from vllm_mxext.server.openai.protocol import ChatCompletionRequest
from vllm_mxext.server.openai.sample_reader import SampleReader
from vllm_mxext.server.openai.sampling import chat_sampling, name_chat_fields

_KINDS = ("chat.completion", "chat.completion.chunk")


async def create_chat_completion(context: ServerContext, request: ChatCompletionRequest, priority: int) -> Response:
    """Answers a conversation.

    Raises:
        RequestError: the request was refused.
        EngineError: the engine could not do it.
    """
    context.served_name(request.model)
    is_constrained_by_tools = False
    try:
        plan = plan_output(request, context.parsers)
        params = chat_sampling(request, context.client.model.default_sampling)
        prompt = await render_conversation(context, request, plan.tools)
        params = planned(params, request, plan, prompt)
        if isinstance(params, SamplingParams) and plan.callable_tools:
            is_constrained_by_tools = params.structured_outputs is not None
        exchange = Exchange.begin(context, request, params, "chatcmpl")
        text_prompt = TextPrompt(prompt, add_special_tokens=bool(request.add_special_tokens))
        generation = await exchange.admit([text_prompt], priority)
    except InvalidRequestError as error:
        if error.param == "structured_outputs" and is_constrained_by_tools:
            error.param = "tools"
        name_chat_fields(error, request)
        raise
    writer = _ChatWriter(context, request, plan, prompt)
    return await respond(exchange, generation, writer, _KINDS)


class _ChatWriter:
    """Shapes one chat request's outputs."""

    def __init__(self, context: ServerContext, request: ChatCompletionRequest, plan: OutputPlan, prompt: str) -> None:
        last_message = request.messages[-1]
        self._request = request
        self._role = context.config.response_role if request.begins_answer else last_message.role
        self._echoed = last_message.text if request.echo and last_message.role == self._role else ""
        self._plan = plan
        self._prompt = prompt
        self._readers: dict[int, SampleReader] = {}
        self._logprobs = LogprobsFormatter(
            context.client.tokenizer,
            -1 if request.logprob_token_ids else request.top_logprobs or 0,
            is_token_ids=names_tokens_by_id(context, request),
        )

    def chunks(self, position: int, output: RequestOutput) -> list[dict[str, Any]]:
        del position  # a conversation is one prompt
        chunks = []
        for sample in output.outputs:
            if sample.index not in self._readers:
                chunks.append(self._first_chunk(sample.index, output.prompt_token_ids))
                if self._echoed:
                    chunks.append(_chunk(sample.index, {"content": self._echoed}))
            reader = self._reader(sample.index)
            delta = reader.read(sample.text, is_finished=sample.is_finished)
            if delta or sample.is_finished or (sample.token_ids and self._reports_tokens):
                if not delta and not sample.is_finished:
                    delta = {"content": ""}
                chunks.append(_chunk(sample.index, delta, self._details(sample, reader)))
        return chunks

    def complete(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        output = outputs[0]
        choices = []
        for sample in output.outputs:
            reader = self._reader(sample.index)
            parts = reader.message(sample.text)
            if self._echoed:
                parts["content"] = self._echoed + (parts["content"] or "")
            message = {"role": self._role, "refusal": None, **parts}
            choices.append({"index": sample.index, "message": message, **self._details(sample, reader)})
        response: dict[str, Any] = {"choices": choices}
        if self._request.return_token_ids:
            response["prompt_token_ids"] = output.prompt_token_ids
        if output.prompt_logprobs is not None:
            response["prompt_logprobs"] = self._logprobs.prompt(output.prompt_logprobs)
        return response

    @property
    def reasoning(self) -> list[str] | None:
        """Reasoning of each sample, or None if the server does not look for any."""
        if self._plan.setup.reasoning_parser is None:
            return None
        return [reader.reasoning for reader in self._readers.values()]

    def _reader(self, index: int) -> SampleReader:
        if index not in self._readers:
            self._readers[index] = SampleReader(self._request, self._plan, self._prompt)
        return self._readers[index]

    @property
    def _reports_tokens(self) -> bool:
        return bool(self._request.return_token_ids or self._request.logprobs)

    def _first_chunk(self, index: int, prompt_token_ids: list[int]) -> dict[str, Any]:
        chunk = _chunk(index, {"role": self._role, "content": ""})
        if self._request.return_token_ids:
            chunk["prompt_token_ids"] = prompt_token_ids
        return chunk

    def _details(self, sample: CompletionOutput, reader: SampleReader) -> dict[str, Any]:
        details = finish_fields(sample)
        details["finish_reason"] = reader.finish_reason(sample.finish_reason)
        details["logprobs"] = (
            None if sample.logprobs is None else self._logprobs.chat(sample.token_ids, sample.logprobs)
        )
        if self._request.return_token_ids:
            details["token_ids"] = sample.token_ids
        return details


def _chunk(index: int, delta: dict[str, Any], details: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, **(details or {"logprobs": None, "finish_reason": None})}]}
