"""Which adapter a request uses and how strongly: by its `model`, with `lora_scale`, or by llama.cpp's `lora`."""

from __future__ import annotations

from typing import NamedTuple

from vllm_mxext.errors import AdapterNotFoundError, InvalidRequestError, UnsupportedFeatureError
from vllm_mxext.server.context import ServerContext
from vllm_mxext.server.openai.protocol import AdapterScale, GenerationRequest


class AdapterChoice(NamedTuple):
    """What a request's output is made with.

    Attributes:
        name: the adapter; None = the model alone.
        scale: factor on everything that the adapter adds.
    """

    name: str | None = None
    scale: float = 1.0


def choose_adapter(context: ServerContext, request: GenerationRequest) -> AdapterChoice:
    """Returns the adapter of a request.

    In llama.cpp's `lora: [{id, scale}]` adapters that are not named, or have the scale 0, do not act; here one may act.

    Raises:
        ModelNotFoundError: the model, or an id, is not served here.
        InvalidRequestError: the fields contradict each other, or there is a scale without an adapter.
        UnsupportedFeatureError: several adapters are to act at once.
    """
    name = context.adapters.resolve(request.model)
    if request.lora:
        if request.lora_scale is not None:
            raise InvalidRequestError("lora and lora_scale exclude each other; send one of them.", param="lora")
        return _by_id(context, name, request.lora)
    if request.lora_scale is None:
        return AdapterChoice(name)
    if name is None:
        raise InvalidRequestError(
            "lora_scale needs an adapter; name one in model, as `adapter` or `base_model:adapter`.", param="lora_scale"
        )
    return AdapterChoice(name, request.lora_scale)


def _by_id(context: ServerContext, model: str | None, entries: list[AdapterScale]) -> AdapterChoice:
    names = {info.adapter_id: info.name for info in context.client.adapters}
    unknown = next((entry.id for entry in entries if entry.id not in names), None)
    if unknown is not None:
        raise AdapterNotFoundError(f"There is no lora adapter with the id {unknown}.", param="lora")
    acting = [AdapterChoice(names[entry.id], entry.scale) for entry in entries if entry.scale]
    if len(acting) > 1:
        raise UnsupportedFeatureError("A request uses one adapter; give all others in lora the scale 0.", param="lora")
    if not acting:
        return AdapterChoice()
    if model not in (None, acting[0].name):
        raise InvalidRequestError(
            f"model names the adapter '{model}' and lora '{acting[0].name}'; name one of them.", param="lora"
        )
    return acting[0]
