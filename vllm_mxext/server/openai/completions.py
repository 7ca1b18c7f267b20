"""Serves `POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.outputs import CompletionOutput, PositionLogprobs, RequestOutput
from vllm_mxext.requests import Prompt, TextPrompt, TokensPrompt
from vllm_mxext.server.context import ServerContext
from vllm_mxext.server.openai.constraints import name_constraint_field
from vllm_mxext.server.openai.exchange import Exchange, finish_fields, names_tokens_by_id, respond
from vllm_mxext.server.openai.generation import OpenGeneration
from vllm_mxext.server.openai.logprobs import LogprobsFormatter
from vllm_mxext.server.openai.protocol import CompletionRequest
from vllm_mxext.server.openai.sampling import completion_sampling

_KINDS = ("text_completion", "text_completion")


async def create_completion(context: ServerContext, request: CompletionRequest, priority: int) -> Response:
    """Continues one or several prompts.

    Raises:
        RequestError: the request was refused.
        EngineError: the engine could not do it.
    """
    exchange, generation = await admit_completion(context, request, priority, "cmpl")
    return await respond(exchange, generation, CompletionWriter(context, request), _KINDS)


async def admit_completion(
    context: ServerContext, request: CompletionRequest, priority: int, prefix: str
) -> tuple[Exchange, OpenGeneration]:
    """Submits the prompts of a request; `prefix` begins the name of its response.

    Raises:
        RequestError: the request was refused.
        EngineError: the engine takes none.
    """
    params = completion_sampling(request, context.client.model.default_sampling)
    prompts = completion_prompts(request)
    _check_number_of_samples(len(prompts) * params.num_samples, context.client.model.max_open_samples)
    exchange = Exchange.begin(context, request, params, prefix)
    try:
        return exchange, await exchange.admit(prompts, priority)
    except InvalidRequestError as error:
        name_constraint_field(error, request)
        raise


def completion_prompts(request: CompletionRequest) -> list[Prompt]:
    """Returns the prompts of a request, in order."""
    prompt = request.prompt
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        prompt = [prompt]
    adds_special_tokens = request.add_special_tokens is not False
    return [
        TextPrompt(one, add_special_tokens=adds_special_tokens) if isinstance(one, str) else TokensPrompt(tuple(one))
        for one in prompt
    ]


def _check_number_of_samples(num_samples: int, limit: int | None) -> None:
    """Refuses more prompts than an empty queue takes: such a request would be told to come again for ever."""
    if limit is not None and num_samples > limit:
        raise InvalidRequestError(
            f"The prompts ask for {num_samples} samples, this server takes {limit} at once; send fewer prompts in one "
            "request.",
            param="prompt",
        )


class CompletionWriter:
    """Shapes one completion request's outputs; choice index = prompt position * n + sample index.

    Args:
        context: the server's parts.
        request: the checked request.
    """

    def __init__(self, context: ServerContext, request: CompletionRequest) -> None:
        self._tokenizer = tokenizer = context.client.tokenizer
        self._request = request
        self._num_samples = request.n or 1
        self._offsets: dict[int, int] = {}
        self._prompt_logprobs: dict[int, list[PositionLogprobs | None]] = {}
        self._reports_logprobs = request.logprobs is not None or bool(request.logprob_token_ids)
        self._logprobs = LogprobsFormatter(
            tokenizer,
            -1 if request.logprob_token_ids else request.logprobs or 0,
            is_token_ids=names_tokens_by_id(context, request),
        )

    def chunks(self, position: int, output: RequestOutput) -> list[dict[str, Any]]:
        """Returns the choices that an output brings, one chunk each."""
        self._note_prompt(position, output)
        chunks = []
        for sample in output.outputs:
            index = position * self._num_samples + sample.index
            is_first = index not in self._offsets
            if is_first or sample.text or sample.is_finished or (sample.token_ids and self._reports_tokens):
                chunks.append({"choices": [self._choice(index, output, sample, is_first=is_first)]})
        return chunks

    def complete(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """Returns the choices of the whole response."""
        for position, output in enumerate(outputs):
            self._note_prompt(position, output)
        choices = [
            self._choice(position * self._num_samples + sample.index, output, sample, is_first=True)
            for position, output in enumerate(outputs)
            for sample in output.outputs
        ]
        return {"choices": choices}

    def _note_prompt(self, position: int, output: RequestOutput) -> None:
        """Keeps the prompt's log probabilities, which come once, for every sample of it."""
        if output.prompt_logprobs is not None:
            self._prompt_logprobs[position] = output.prompt_logprobs

    @property
    def reasoning(self) -> None:
        """Plain completions are not parsed."""
        return

    @property
    def _reports_tokens(self) -> bool:
        return bool(self._request.return_token_ids or self._reports_logprobs)

    def _choice(self, index: int, output: RequestOutput, sample: CompletionOutput, *, is_first: bool) -> dict[str, Any]:
        if self._request.only_echoes:
            reason = "length" if sample.finish_reason == "stop" else sample.finish_reason
            sample = CompletionOutput(sample.index, "", [], finish_reason=reason)
        echoed = self._prompt_text(output) if is_first and self._request.echo else ""
        choice = {"index": index, "text": echoed + sample.text, "logprobs": None, **finish_fields(sample)}
        offset = self._offsets.setdefault(index, len(echoed))
        if sample.logprobs is not None:
            choice["logprobs"] = self._logprobs.completion(sample.token_ids, sample.logprobs, offset)
            self._offsets[index] = offset + self._logprobs.text_length(sample.token_ids, sample.logprobs)
        prompt_logprobs = self._prompt_logprobs.get(index // self._num_samples)
        if is_first and prompt_logprobs is not None:
            if self._request.prompt_logprobs is not None:
                choice["prompt_logprobs"] = self._logprobs.prompt(prompt_logprobs)
            if self._request.echo and self._request.logprobs is not None:
                told = self._logprobs.echo(output.prompt_token_ids, prompt_logprobs, echoed)
                choice["logprobs"] = _joined(told, choice["logprobs"])
        if self._request.return_token_ids:
            choice["token_ids"] = sample.token_ids
            if is_first:
                choice["prompt_token_ids"] = output.prompt_token_ids
        return choice

    def _prompt_text(self, output: RequestOutput) -> str:
        if output.prompt is not None:
            return output.prompt
        return self._tokenizer.decode(output.prompt_token_ids)


def _joined(first: dict[str, Any], second: dict[str, Any] | None) -> dict[str, Any]:
    """Log probabilities of an echoed prompt and of what follows it, as those of one text."""
    if second is None:
        return first
    return {name: None if values is None else values + second[name] for name, values in first.items()}
