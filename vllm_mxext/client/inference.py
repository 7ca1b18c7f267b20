"""`Inference`: prompts and conversations to `{text, metadata}`, several prompts in one request where possible."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from vllm_mxext.client.chunks import text_of
from vllm_mxext.client.document import Document
from vllm_mxext.client.errors import BadRequestError, ProtocolError
from vllm_mxext.client.namespaces import OPTION_NAMES, CallOptions, Requests
from vllm_mxext.client.pipeline import Pipeline
from vllm_mxext.client.sharing import BatchSettings, Group, ListForm, SharedRequests

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"

Inputs = str | Sequence[str] | Sequence[Mapping[str, Any]] | Mapping[str, Any]
"""A prompt, several, a conversation, or the fields of a request."""

ANY_MODEL = ("", "default")
"""Names that mean whichever model the server serves."""

_BESIDES_TEXT = ("reasoning", "reasoning_content", "refusal", "tool_calls")
"""Fields of a message that a result keeps."""


class Inference:
    """Turns inputs into requests and answers into results.

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
        form = ListForm(COMPLETIONS, "prompt", "choices", _result)
        self._prompts = SharedRequests(pipeline, requests, batches, form)

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
        if isinstance(inputs, str):
            return await self._prompts.ask(group, inputs)
        path, fields = _request(inputs, group.fields)
        return _result(await self._requests.post(path, {**fields, **group.options}))

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
        return await self._prompts.ask_all(_group(model, parameters, options), texts)

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
        await self._prompts.close()


def _group(model: str, parameters: Mapping[str, Any], options: Mapping[str, Any]) -> Group:
    """Returns the fields of a request and the options of its call, which may be among the parameters."""
    if not isinstance(parameters, Mapping):
        raise BadRequestError(f"Parameters are fields of the request by name, not {type(parameters).__name__}.")
    fields = {**_named(model), **parameters}
    own = CallOptions(**options).merged(fields)
    _check_one_text(fields)
    return Group.of(fields, {name: getattr(own, name) for name in OPTION_NAMES})


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
