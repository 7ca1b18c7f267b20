"""`Inference`: prompts and conversations to `{text, metadata}`, several prompts in one request where possible."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from vllm_mxext.client.batcher import Batcher
from vllm_mxext.client.call import Call
from vllm_mxext.client.chunks import text_of
from vllm_mxext.client.clock import SystemClock
from vllm_mxext.client.document import Document
from vllm_mxext.client.errors import BadRequestError, ClientError, ProtocolError, ServerError
from vllm_mxext.client.namespaces import OPTION_NAMES, Requests
from vllm_mxext.client.pipeline import Pipeline

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"

Inputs = str | Sequence[str] | Sequence[Mapping[str, Any]] | Mapping[str, Any]
"""A prompt, several, a conversation, or the fields of a request."""

ANY_MODEL = ("", "default")
"""Names that mean whichever model the server serves."""

_BESIDES_TEXT = ("reasoning", "reasoning_content", "refusal", "tool_calls")
"""Fields of a message that a result keeps."""


@dataclass(frozen=True, slots=True)
class _Group:
    """What prompts must have in common to share a request.

    Attributes:
        text: fields and options as text, for comparison.
        fields: fields of the request, without the prompt.
        options: fields of `CallOptions`.
    """

    text: str
    fields: Mapping[str, Any] = field(compare=False)
    options: Mapping[str, Any] = field(compare=False)


@dataclass(slots=True)
class BatchSettings:
    """How prompts share requests.

    Attributes:
        is_enabled: whether they do.
        max_size: most prompts in one request.
        timeout_s: how long the first of them waits for others.
    """

    is_enabled: bool = True
    max_size: int = 8
    timeout_s: float = 0.1


class Inference:
    """Turns inputs into requests and answers into results.

    A prompt waits for others only if other calls are under way, so sequential calls are never delayed.

    Args:
        pipeline: sends the calls.
        requests: makes calls of requests.
        batches: how prompts share requests; may be changed at any time.

    Attributes:
        pipeline: the same.
    """

    def __init__(self, pipeline: Pipeline, requests: Requests, batches: BatchSettings) -> None:
        self.pipeline = pipeline
        self._requests = requests
        self._batches = batches
        self._on_batch = pipeline.metrics.record_batch
        self._batcher: Batcher[_Group, str, dict[str, Any]] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._num_calls = 0
        self._takes_lists: bool | None = None  # None = no server has shown it

    async def run(self, model: str, inputs: Inputs, parameters: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
        """Returns the result for an input; a list for several prompts.

        Args:
            model: name of the model.
            inputs: a prompt, several prompts, a conversation, or the fields of a request.
            parameters: further fields of the request, and of `CallOptions`.
            options: fields of `CallOptions`; those in the parameters take precedence.

        Raises:
            ClientError: it failed; for several prompts, the first error.
        """
        inputs = _read(inputs)
        if _is_prompts(inputs):
            results = await self.run_all(model, inputs, parameters, options)
            for result in results:
                if isinstance(result, Exception):
                    raise result
            return results
        group = _group(model, parameters, options)
        self._check_loop()
        self._num_calls += 1
        try:
            if isinstance(inputs, str) and self._num_calls > 1 and self._may_batch():
                return await self._shared_batcher().add(group, inputs)
            path, fields = _request(inputs, group.fields)
            return _result(await self._requests.post(path, {**fields, **group.options}))
        finally:
            self._num_calls -= 1

    async def run_all(
        self, model: str, prompts: Inputs, parameters: Mapping[str, Any], options: Mapping[str, Any]
    ) -> list[dict[str, Any] | Exception]:
        """Returns a result or an error for each prompt, in their order, from as many concurrent requests as allowed.

        Raises:
            BadRequestError: the prompts or the parameters are invalid.
        """
        texts: Sequence[str] = _read(prompts)
        if not _is_prompts(texts):
            raise BadRequestError("Prompts are a list of texts; one prompt alone is a list of one.")
        group = _group(model, parameters, options)
        size = self._batches.max_size if self._may_batch() else 1
        batcher: Batcher[_Group, str, dict[str, Any]] = Batcher(
            self._send, SystemClock(), max_size=size, timeout_s=0.0, on_batch=self._on_batch
        )
        batcher.halves_wait = not self.pipeline.max_queue
        results: list[Any] = [None] * len(texts)
        starts = iter(range(0, len(texts), size))

        async def work() -> None:
            for start in starts:
                part = slice(start, start + size)
                adding = (batcher.add(group, prompt) for prompt in texts[part])
                results[part] = await asyncio.gather(*adding, return_exceptions=True)

        await asyncio.gather(*(work() for _ in range(self._num_places(group.options))))
        for one in results:
            if isinstance(one, BaseException) and not isinstance(one, Exception):
                raise one
        return results

    async def stream(
        self, model: str, inputs: Inputs, parameters: Mapping[str, Any], options: Mapping[str, Any]
    ) -> AsyncGenerator[str, None]:
        """Yields the text for one input as it arrives.

        Raises:
            BadRequestError: there are several inputs.
            StreamInterruptedError: it broke off; `text` is what was received.
            ClientError: it did not begin.
        """
        inputs = _read(inputs)
        if _is_prompts(inputs):
            raise BadRequestError("One answer is streamed at a time; give one prompt or one conversation.")
        group = _group(model, parameters, options)
        path, fields = _request(inputs, group.fields)
        async with aclosing(await self._requests.stream(path, {**fields, **group.options})) as events:
            async for event in events:
                text = text_of(event)
                if text:
                    yield text

    async def close(self) -> None:
        """Cancels waiting prompts."""
        if self._batcher is not None:
            await self._batcher.close(flushes=False)

    def _check_loop(self) -> None:
        """Discards what belongs to an earlier event loop, as after a fork."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._batcher, self._num_calls = loop, None, 0

    def _may_batch(self) -> bool:
        return self._batches.is_enabled and self._batches.max_size > 1 and self._takes_lists is not False

    def _num_places(self, options: Mapping[str, Any]) -> int:
        """Returns how many requests of one list to send at once: more would only fill the queue."""
        call = Call(COMPLETIONS, endpoint_id=options.get("endpoint_id"))
        return max(1, sum(one.limiter.limit for one in self.pipeline.endpoints if one.takes(call)))

    def _shared_batcher(self) -> Batcher[_Group, str, dict[str, Any]]:
        if self._batcher is None:
            self._batcher = Batcher(self._send, SystemClock(), on_batch=self._on_batch)
        self._batcher.max_size, self._batcher.timeout_s = self._batches.max_size, self._batches.timeout_s
        self._batcher.halves_wait = not self.pipeline.max_queue
        return self._batcher

    async def _send(self, group: _Group, prompts: Sequence[str]) -> list[dict[str, Any] | Exception]:
        if len(prompts) == 1:
            return [await self._alone(group, prompts[0])]
        fields = {**group.fields, "prompt": list(prompts), **group.options}
        is_trial = self._takes_lists is not True
        try:
            answer = await self._requests.post(COMPLETIONS, fields, is_trial=is_trial)
        except ServerError as error:
            if error.status != 500 or not is_trial:
                raise
            return await self._one_by_one(group, prompts)
        choices = answer.get("choices")
        if not isinstance(choices, list) or sorted(_index(one) for one in choices) != list(range(len(prompts))):
            raise ProtocolError(
                f"The server answered {len(prompts)} prompts with other choices than one for each; set "
                "batch_enabled = False."
            )
        self._takes_lists = True
        return [_result(answer, choice, len(prompts)) for choice in sorted(choices, key=_index)]

    async def _one_by_one(self, group: _Group, prompts: Sequence[str]) -> list[dict[str, Any] | Exception]:
        """Returns results for a list that was answered with 500, as every list is by llama-cpp-python's server.

        If prompts are answered alone where no list ever was, no lists are sent any more.
        """
        results = [await self._alone_or_error(group, prompt) for prompt in prompts]
        if self._takes_lists is None and not all(isinstance(one, Exception) for one in results):
            self._takes_lists = False
        return results

    async def _alone_or_error(self, group: _Group, prompt: str) -> dict[str, Any] | Exception:
        try:
            return await self._alone(group, prompt)
        except ClientError as error:
            return error

    async def _alone(self, group: _Group, prompt: str) -> dict[str, Any]:
        return _result(await self._requests.post(COMPLETIONS, {**group.fields, "prompt": prompt, **group.options}))


def _group(model: str, parameters: Mapping[str, Any], options: Mapping[str, Any]) -> _Group:
    """Returns the fields of a request and the options of its call, which may be among the parameters."""
    if not isinstance(parameters, Mapping):
        raise BadRequestError(f"Parameters are fields of the request by name, not {type(parameters).__name__}.")
    fields = {**_named(model), **parameters}
    options = {**options, **{name: fields.pop(name) for name in OPTION_NAMES if name in fields}}
    _check_one_text(fields)
    try:  # not a number would be sent as null, which means the server's default
        text = json.dumps([fields, options], sort_keys=True, default=repr, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadRequestError(f"The parameters cannot be written as JSON ({error}); give plain values.") from error
    return _Group(text, fields, options)


def _check_one_text(fields: Mapping[str, Any]) -> None:
    if fields.get("n") not in (None, 1):
        raise BadRequestError("A result has one text, so n must be 1; completions.create() returns several.")


def _named(model: str) -> dict[str, str]:
    return {} if model in ANY_MODEL else {"model": model}


def _read(inputs: Any) -> Any:
    """Returns inputs in a form that can be iterated more than once."""
    if isinstance(inputs, (str, Mapping, list, tuple)):
        return inputs
    if isinstance(inputs, Iterable) and not isinstance(inputs, (bytes, bytearray)):
        return list(inputs)
    raise BadRequestError(
        "Inputs are a prompt, a list of prompts, or a list of messages with role and content, not "
        f"{type(inputs).__name__}."
    )


def _is_prompts(inputs: Inputs) -> bool:
    return not isinstance(inputs, (str, Mapping)) and all(isinstance(one, str) for one in inputs)


def _request(inputs: Inputs, fields: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(inputs, str):
        return COMPLETIONS, {**fields, "prompt": inputs}
    if isinstance(inputs, Mapping):
        given = {**fields, **inputs}
        _check_one_text(given)
        if ("prompt" in given) == ("messages" in given):
            raise BadRequestError("A request has either a prompt or messages.")
        return (CHAT if "messages" in given else COMPLETIONS), given
    if all(isinstance(one, Mapping) for one in inputs):
        return CHAT, {**fields, "messages": list(inputs)}
    raise BadRequestError("Inputs are a prompt, a list of prompts, or a list of messages with role and content.")


def _result(answer: Mapping[str, Any], choice: Mapping[str, Any] | None = None, num_prompts: int = 1) -> dict[str, Any]:
    """Returns the documented form; a batch's usage belongs to all of its prompts, and is in `batch` therefore."""
    if choice is None:
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
            raise ProtocolError("The answer has no choices; check that the address is that of a server for text.")
        choice = choices[0]
    message = choice.get("message")
    text = message.get("content") if isinstance(message, Mapping) else choice.get("text")
    metadata: dict[str, Any] = {"finish_reason": choice.get("finish_reason"), "model": answer.get("model")}
    usage = answer.get("usage")
    if num_prompts == 1:
        metadata["usage"] = usage
    else:
        metadata |= {"usage": None, "batch": {"size": num_prompts, "usage": usage}}
    result = {"text": text or "", "metadata": metadata}
    if choice.get("logprobs") is not None:
        result["logprobs"] = choice["logprobs"]
    if isinstance(message, Mapping):
        result |= {name: message[name] for name in _BESIDES_TEXT if message.get(name)}
    return Document(result)


def _index(choice: Any) -> int:
    index = choice.get("index") if isinstance(choice, Mapping) else None
    return index if isinstance(index, int) else -1
