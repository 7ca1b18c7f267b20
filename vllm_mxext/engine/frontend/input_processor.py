"""Turns a `GenerateRequest` into requests the engine core can serve, or refuses it with the reason."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vllm_mxext.config.engine import EngineConfig
from vllm_mxext.engine.frontend.sampling_inputs import SamplingInputs
from vllm_mxext.errors import ContextLengthExceededError, InvalidRequestError, UnsupportedFeatureError
from vllm_mxext.logits_processors import check_params, load_logits_processors
from vllm_mxext.native.protocol import AdapterKey, EngineCoreRequest
from vllm_mxext.native.structured.admission import GrammarAdmission
from vllm_mxext.native.structured.vocabulary import end_token_ids
from vllm_mxext.parsing.reasoning import ReasoningFormat
from vllm_mxext.requests import GenerateRequest, Prompt, TextPrompt
from vllm_mxext.sampling_params import SamplingParams
from vllm_mxext.tokenizer.interface import Tokenizer
from vllm_mxext.tokenizer.prompt_tokens import encode_prompt

MAX_CACHE_SALT_LENGTH = 128
_CACHE_SALT_FORBIDDEN = "@/\\\0"
_MAX_PRIORITY = 2**31
_MASK_64 = 2**64 - 1


@dataclass(frozen=True, slots=True)
class ProcessedRequest:
    """A request that has passed every check.

    Attributes:
        request: as the caller gave it.
        prompt_text: the prompt's text, if known.
        prompt_token_ids: what the model sees.
        samples: one core request per sample, ordered by index.
        is_step: it is one step of a beam search, which alone is counted and recorded.
    """

    request: GenerateRequest
    prompt_text: str | None
    prompt_token_ids: list[int]
    samples: tuple[EngineCoreRequest, ...]
    is_step: bool = False

    @property
    def adapter(self) -> AdapterKey | None:
        """Id and generation of its adapter, which is given back when it has ended."""
        first = self.samples[0]
        return (first.adapter_id, first.adapter_generation) if first.adapter_id else None

    @property
    def arrival_s(self) -> float:
        """When the request came, on the front's monotonic clock."""
        return self.samples[0].arrival_s


class InputProcessor:
    """Tokenizes and validates requests; may run in several threads.

    Core requests get ids of their own, `{request id}#{serial}` and `{request id}#{serial}/{index}` for one of several
    samples, so that what the core still says of a request that has left is never taken for news of a later one with
    the same id.

    Args:
        config: limits of the engine.
        tokenizer: the model's tokenizer.
        draw_seed: called for requests without a seed; any integer.
        grammars: checks structured output; without it, requests that ask for some are refused.
        reasoning: how the model marks its reasoning; without it, requests that limit it are refused.
    """

    def __init__(
        self,
        config: EngineConfig,
        tokenizer: Tokenizer,
        draw_seed: Callable[[], int],
        grammars: GrammarAdmission | None = None,
        reasoning: ReasoningFormat | None = None,
    ) -> None:
        model = config.model
        self._grammars = grammars
        self._tokenizer = tokenizer
        self._draw_seed = draw_seed
        self._serials = itertools.count()
        self._has_priorities = config.scheduler.policy == "priority"
        self._max_model_len = model.max_model_len
        self._max_logprobs = model.max_logprobs
        self._vocab_size = model.spec.vocab_size
        self._sampling = SamplingInputs(tokenizer, self._vocab_size, self._max_model_len, reasoning)
        self._processors = load_logits_processors(config.logits_processors)
        self._eos_token_ids = end_token_ids(model.spec, tokenizer)

    def process(
        self, request: GenerateRequest, arrival_s: float, adapter: AdapterKey | None = None
    ) -> ProcessedRequest:
        """Tokenizes the prompt, checks every limit and makes one core request per sample.

        Args:
            request: what is asked for.
            arrival_s: when it came.
            adapter: what the name of its adapter means.

        Raises:
            ContextLengthExceededError: prompt, or prompt plus `max_tokens`, does not fit the model.
            InvalidRequestError: anything else the core could not serve.
        """
        _check_cache_salt(request.cache_salt)
        self._check_priority(request.priority)
        text, token_ids = self._tokenize(request.prompt, request.params)
        params = self._check_params(request.params, len(token_ids))
        rules = self._sampling.rules(params, token_ids)
        check_params(self._processors, params)
        params, grammar = self._take_grammar(params)
        seed = self._draw_seed() if params.seed is None else params.seed
        core_id = f"{request.request_id}#{next(self._serials)}"
        if params.num_samples > params.n and not params.reports_logprobs:
            params = params.clone(logprobs=0)  # which samples are best is seen by their log probabilities
        other_params = params if params.prompt_logprobs is None else params.clone(prompt_logprobs=None)
        adapter_id, generation = adapter or (0, 0)
        samples = tuple(
            EngineCoreRequest(
                request_id=core_id if params.num_samples == 1 else f"{core_id}/{index}",
                prompt_token_ids=token_ids,
                params=params if index == 0 else other_params,
                seed=(seed + index) & _MASK_64,
                eos_token_ids=self._eos_token_ids,
                priority=request.priority,
                arrival_s=arrival_s,
                adapter_id=adapter_id,
                adapter_generation=generation,
                cache_salt=request.cache_salt,
                group_id=core_id if params.num_samples > 1 else None,
                rules=rules,
                grammar=grammar,
                adapter_scale=request.adapter_scale,
            )
            for index in range(params.num_samples)
        )
        return ProcessedRequest(request, text, token_ids, samples)

    def _take_grammar(self, params: SamplingParams) -> tuple[SamplingParams, str | None]:
        """Returns the parameters without their constraint, and its grammar."""
        if params.structured_outputs is None:
            return params, None
        if self._grammars is None:
            raise UnsupportedFeatureError(
                "This engine has no structured output; leave it out.", param="structured_outputs"
            )
        return params.clone(structured_outputs=None), self._grammars.grammar(params.structured_outputs)

    def _tokenize(self, prompt: Prompt, params: SamplingParams) -> tuple[str | None, list[int]]:
        """Returns the prompt's text, if what the model reads is all of it, and its tokens."""
        if isinstance(prompt, TextPrompt):
            token_ids = encode_prompt(self._tokenizer, prompt.text, add_special_tokens=prompt.add_special_tokens)
        else:
            token_ids = list(prompt.token_ids)
            self._check_token_ids(token_ids, "prompt")
        if not token_ids:
            raise InvalidRequestError("The prompt is empty; give at least one token.", param="prompt")
        kept = self._sampling.truncate(token_ids, params)
        return prompt.text if len(kept) == len(token_ids) else None, kept

    def _check_token_ids(self, token_ids: Sequence[int], field: str) -> None:
        for token_id in token_ids:
            if isinstance(token_id, bool) or not isinstance(token_id, int):
                raise InvalidRequestError(f"{field} must hold integer token ids, got {token_id!r}.", param=field)
            if not 0 <= token_id < self._vocab_size:
                raise InvalidRequestError(
                    f"{field} has token id {token_id}, which is outside the vocabulary of {self._vocab_size} tokens.",
                    param=field,
                )

    def _check_params(self, params: SamplingParams, num_prompt_tokens: int) -> SamplingParams:
        self._check_logprobs("logprobs", params.logprobs)
        self._check_logprobs("prompt_logprobs", params.prompt_logprobs)
        self._check_token_ids(params.stop_token_ids, "stop_token_ids")
        remaining = self._max_model_len - num_prompt_tokens
        limit = f"This model's maximum context length is {self._max_model_len} tokens. However, "
        if remaining < 1:
            raise ContextLengthExceededError(
                f"{limit}your messages resulted in {num_prompt_tokens} tokens. "
                "Please reduce the length of the messages.",
                param="prompt",
            )
        if params.max_tokens is None:
            return params.clone(max_tokens=remaining)
        if params.max_tokens > remaining:
            raise ContextLengthExceededError(
                f"{limit}you requested {num_prompt_tokens + params.max_tokens} tokens ({num_prompt_tokens} in the "
                f"messages, {params.max_tokens} in the completion). Please reduce the length of the messages or "
                "completion.",
                param="max_tokens",
            )
        return params

    def _check_priority(self, priority: int) -> None:
        if not -_MAX_PRIORITY <= priority < _MAX_PRIORITY:
            raise InvalidRequestError(f"priority must be a 32-bit integer, got {priority}.", param="priority")
        if priority and not self._has_priorities:
            raise InvalidRequestError(
                "priority must be 0 here: the engine serves in the order of arrival; start it with --scheduling-policy "
                "priority to use it.",
                param="priority",
            )

    def _check_logprobs(self, field: str, logprobs: int | None) -> None:
        if logprobs is None or self._max_logprobs == -1:
            return
        if logprobs == -1 or logprobs > self._max_logprobs:
            raise InvalidRequestError(
                f"{field} must be at most {self._max_logprobs} on this server, got {logprobs}.", param=field
            )


def _check_cache_salt(cache_salt: str | None) -> None:
    if cache_salt is None:
        return
    if not cache_salt or len(cache_salt) > MAX_CACHE_SALT_LENGTH:
        raise InvalidRequestError(f"cache_salt must have 1 to {MAX_CACHE_SALT_LENGTH} characters.", param="cache_salt")
    if any(character in _CACHE_SALT_FORBIDDEN for character in cache_salt):
        raise InvalidRequestError("cache_salt must not contain '@', '/', '\\' or NUL.", param="cache_salt")
