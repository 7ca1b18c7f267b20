"""From request fields and the model's defaults to `SamplingParams`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vllm_mxext.beam_search_params import BeamSearchParams
from vllm_mxext.constraint_params import RepetitionDetectionParams
from vllm_mxext.errors import InvalidRequestError, UnsupportedFeatureError
from vllm_mxext.sampling_params import OutputKind, SamplingParams
from vllm_mxext.server.openai.constraints import name_constraint_field, read_constraint
from vllm_mxext.server.openai.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerationRequest,
    RepetitionDetectionFields,
)

COMPLETION_MAX_TOKENS = 16

_FIELDS_WITH_MODEL_DEFAULTS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
_FIELDS = (
    "n",
    "best_of",
    "seed",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "min_tokens",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "logprob_token_ids",
    "prompt_logprobs",
    "truncate_prompt_tokens",
    "truncation_side",
    "stream_interval",
    "thinking_token_budget",
    "typical_p",
    "top_n_sigma",
    "xtc_probability",
    "xtc_threshold",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
    "dry_sequence_breakers",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "dynatemp_range",
    "dynatemp_exponent",
)


_BEAM_FIELDS = (
    "length_penalty",
    "early_stopping",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "spaces_between_special_tokens",
)
_BESIDE_BEAMS = frozenset(
    {
        *(*_BEAM_FIELDS, "n", "best_of", "max_tokens", "logprobs"),
        *("seed", "temperature", "top_p", "top_k", "min_p", "output_kind", "stream_interval"),
    }
)
"""Fields that a beam search has too, and those that only say how to draw or deliver, which it does in its own way."""
_DEFAULTS = SamplingParams(max_tokens=None)


def chat_sampling(
    request: ChatCompletionRequest, defaults: Mapping[str, float | int]
) -> SamplingParams | BeamSearchParams:
    """Returns the parameters of a chat completion; without a limit it may fill the context.

    Raises:
        InvalidRequestError: a value is out of range; `param` is the request's field.
    """
    max_tokens = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return _build(request, defaults, max_tokens, None, logprobs)


def completion_sampling(
    request: CompletionRequest, defaults: Mapping[str, float | int]
) -> SamplingParams | BeamSearchParams:
    """Returns the parameters of a plain completion; without a limit it has 16 tokens.

    Raises:
        InvalidRequestError: a value is out of range; `param` is the request's field.
    """
    max_tokens = 1 if request.only_echoes else request.max_tokens  # the engine always generates
    params = _build(request, defaults, max_tokens, COMPLETION_MAX_TOKENS, request.logprobs)
    if request.echo and request.logprobs is not None:  # the echoed prompt has log probabilities too
        if isinstance(params, BeamSearchParams):
            message = "echo with logprobs cannot be combined with use_beam_search; leave one of them out."
            raise UnsupportedFeatureError(message, param="echo")
        asked = (request.logprobs, request.prompt_logprobs or 0)
        params = params.clone(prompt_logprobs=-1 if -1 in asked else max(asked))
    return params


def _build(
    request: GenerationRequest,
    defaults: Mapping[str, float | int],
    max_tokens: int | None,
    default_max_tokens: int | None,
    logprobs: int | None,
) -> SamplingParams | BeamSearchParams:
    values = {field: getattr(request, field) for field in _FIELDS}
    for field in _FIELDS_WITH_MODEL_DEFAULTS:
        value = getattr(request, field)
        values[field] = defaults.get(field) if value is None else value
    if max_tokens is None:
        limit = defaults.get("max_tokens", default_max_tokens)
        max_tokens = None if limit is None else int(limit)
    if request.use_beam_search:
        return _beam_search(request, max_tokens, logprobs)
    return _sampling_params(request, values, max_tokens, logprobs)


def _sampling_params(
    request: GenerationRequest, values: Mapping[str, Any], max_tokens: int | None, logprobs: int | None
) -> SamplingParams:
    return SamplingParams.from_optional(
        **values,
        extra_args=request.vllm_xargs,
        repetition_detection=_repetition_detection(request.repetition_detection),
        max_tokens=max_tokens,
        logprobs=logprobs,
        structured_outputs=read_constraint(request),
        output_kind=OutputKind.DELTA if request.stream else OutputKind.FINAL_ONLY,
    )


def _repetition_detection(fields: RepetitionDetectionFields | None) -> RepetitionDetectionParams | None:
    """Returns the rule; vLLM's clients switch it off with a size of 0."""
    if fields is None or not fields.max_pattern_size:
        return None
    return RepetitionDetectionParams(fields.max_pattern_size, fields.min_pattern_size or 1, fields.min_count or 2)


def _beam_search(request: GenerationRequest, max_tokens: int | None, logprobs: int | None) -> BeamSearchParams:
    """Returns the parameters of a beam search; the model's sampling defaults do not concern it."""
    _refuse_beside_beams(request)
    given = {field: getattr(request, field) for field in _BEAM_FIELDS}
    n = 1 if request.n is None else request.n
    return BeamSearchParams(
        beam_width=n if request.best_of is None else request.best_of,
        n=n,
        max_tokens=max_tokens,
        logprobs=logprobs,
        **{field: value for field, value in given.items() if value is not None},
    )


def _refuse_beside_beams(request: GenerationRequest) -> None:
    """Refuses what a search would have to ignore although it changes the answer."""
    names = [name for name in (*_FIELDS, *_FIELDS_WITH_MODEL_DEFAULTS) if name not in _BESIDE_BEAMS]
    given = _sampling_params(request, {name: getattr(request, name) for name in names}, None, None)
    fields = (field.name for field in dataclasses.fields(SamplingParams) if field.name not in _BESIDE_BEAMS)
    refused = [name for name in fields if getattr(given, name) != getattr(_DEFAULTS, name)]
    if request.t_max_predict_ms is not None and request.t_max_predict_ms > 0:  # a search has no first token
        refused.append("t_max_predict_ms")
    for name in refused:
        message = f"{name} cannot be combined with use_beam_search, which takes the likeliest texts; leave it out."
        raise UnsupportedFeatureError(message, param=name)


def name_chat_fields(error: InvalidRequestError, request: ChatCompletionRequest) -> None:
    """Renames the field an error blames to what a chat request calls it."""
    name_constraint_field(error, request)
    names = {"prompt": "messages"}
    if request.max_completion_tokens is not None:
        names["max_tokens"] = "max_completion_tokens"
    if request.top_logprobs is not None:
        names["logprobs"] = "top_logprobs"
    if error.param is not None:
        error.param = names.get(error.param, error.param)
