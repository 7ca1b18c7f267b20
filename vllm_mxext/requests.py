"""What a caller asks of an engine: a prompt with its sampling parameters."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vllm_mxext.beam_search_params import BeamSearchParams
from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.sampling_params import SamplingParams

MAX_TIMEOUT_S = 1e6
"""Limits of time are less than this, so that they can be added to any clock."""

MAX_ADAPTER_SCALE = 16.0


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A prompt as text.

    Attributes:
        text: the text to tokenize.
        add_special_tokens: let the tokenizer add its own (BOS); chat templates have already written theirs.
        cache_salt: that of a request which names none itself.
    """

    text: str
    add_special_tokens: bool = True
    cache_salt: str | None = None


@dataclass(frozen=True, slots=True)
class TokensPrompt:
    """A prompt as token ids.

    Attributes:
        token_ids: the ids, used as they are.
        text: the text they came from, if known; only echoed back.
        cache_salt: that of a request which names none itself.
    """

    token_ids: tuple[int, ...]
    text: str | None = None
    cache_salt: str | None = None


Prompt = TextPrompt | TokensPrompt


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """An adapter that a prompt asks for, as vLLM's class of this name.

    Attributes:
        lora_name: name of the adapter.
        lora_int_id: a positive number of the caller's choice, the same for the same adapter.
        lora_path: its folder or file.
        base_model_name: the model it was made for; only reported.
        load_inplace: read its files again although it is known.

    Raises:
        InvalidRequestError: the id is no positive number, or name or path is no text or empty.
    """

    lora_name: str
    lora_int_id: int
    lora_path: str
    base_model_name: str | None = None
    load_inplace: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.lora_path, os.PathLike):
            object.__setattr__(self, "lora_path", os.fspath(self.lora_path))
        if not isinstance(self.lora_int_id, int) or self.lora_int_id < 1:
            raise InvalidRequestError(f"lora_int_id must be 1 or more, got {self.lora_int_id!r}.", param="lora_int_id")
        if not all(isinstance(text, str) and text for text in (self.lora_name, self.lora_path)):
            raise InvalidRequestError("A LoRARequest needs lora_name and lora_path, both texts.", param="lora_request")


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One generation request as an `EngineClient` takes it.

    Attributes:
        request_id: unique among open requests.
        prompt: text or token ids.
        params: checked sampling parameters.
        priority: lower is served first under the priority policy.
        cache_salt: requests share prefix blocks only with requests of the same salt.
        timeout_s: seconds from its arrival after which it ends: with what there is then and finish reason `length`, or
            with `DeadlineExceededError` if there is nothing; None = no limit.
        max_generation_s: seconds from its first token after which it ends, with finish reason `length`, once its text
            has a line break; None = no limit.
        adapter: name of the LoRA adapter to use; None = none.
        adapter_scale: factor on everything that the adapter adds.

    Raises:
        InvalidRequestError: a limit is not positive, or the scale is out of range.
    """

    request_id: str
    prompt: Prompt
    params: SamplingParams
    priority: int = 0
    cache_salt: str | None = None
    timeout_s: float | None = None
    max_generation_s: float | None = None
    adapter: str | None = None
    adapter_scale: float = 1.0

    def __post_init__(self) -> None:
        _check_limit(self.timeout_s, "timeout_ms")
        _check_limit(self.max_generation_s, "t_max_predict_ms")
        _check_scale(self.adapter_scale)
        if self.cache_salt is None:
            object.__setattr__(self, "cache_salt", self.prompt.cache_salt)


@dataclass(frozen=True, slots=True)
class BeamSearchRequest:
    """One beam search as an `EngineClient` takes it.

    Attributes:
        request_id: unique among open requests.
        prompt: text or token ids.
        params: checked parameters.
        priority: lower is served first under the priority policy.
        cache_salt: requests share prefix blocks only with requests of the same salt.
        timeout_s: seconds from its arrival after which it ends, as for `GenerateRequest`.
        adapter: name of the LoRA adapter to use; None = none.
        adapter_scale: factor on everything that the adapter adds.

    Raises:
        InvalidRequestError: the limit is not positive, or the scale is out of range.
    """

    request_id: str
    prompt: Prompt
    params: BeamSearchParams
    priority: int = 0
    cache_salt: str | None = None
    timeout_s: float | None = None
    adapter: str | None = None
    adapter_scale: float = 1.0

    def __post_init__(self) -> None:
        _check_limit(self.timeout_s, "timeout_ms")
        _check_scale(self.adapter_scale)
        if self.cache_salt is None:
            object.__setattr__(self, "cache_salt", self.prompt.cache_salt)


def _check_limit(seconds: float | None, field: str) -> None:
    if seconds is not None and not 0 < seconds < MAX_TIMEOUT_S:
        message = f"{field} must be greater than 0 and less than {MAX_TIMEOUT_S * 1000:.0f}, got {seconds * 1000:g}."
        raise InvalidRequestError(message, param=field)


def _check_scale(scale: float) -> None:
    if not 0 <= scale <= MAX_ADAPTER_SCALE:
        message = f"adapter_scale must be from 0 to {MAX_ADAPTER_SCALE:g}, got {scale:g}."
        raise InvalidRequestError(message, param="adapter_scale")
