"""Request models: the one place where JSON is trusted.

Every field may be null, which means its default. Ranges of sampling fields are checked by `SamplingParams`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from vllm_mxext.requests import MAX_ADAPTER_SCALE
from vllm_mxext.server.openai.message_protocol import STOP_AT_FIRST, ChatMessage
from vllm_mxext.server.openai.tool_protocol import (
    MAX_TOOLS,
    FunctionDefinition,
    FunctionName,
    NamedToolChoice,
    Tool,
    ToolChoice,
    checked_tools,
)

MAX_STOP_STRINGS = 64
MAX_TEXTS_CHARS = 65_536
"""Characters of stop strings, or of bad words, in one request: every one of its samples carries them."""

MAX_PROMPTS = 1024


RequestId = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,128}$")]


def _check_prompt(value: Any) -> Any:
    rule = "must be a string, a list of strings, a list of token ids, or a list of lists of token ids"
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(rule)  # noqa: TRY004 - pydantic turns ValueError into a finding
    if not value:
        raise ValueError("must not be an empty list")
    if _all_of(value, str) or _all_of(value, list):
        if len(value) > MAX_PROMPTS:
            raise ValueError(f"holds {len(value)} prompts; send at most {MAX_PROMPTS} in one request")
        if isinstance(value[0], list) and not all(_all_of(ids, int) for ids in value):
            raise ValueError(rule)
    elif not _all_of(value, int):
        raise ValueError(rule)
    return value


def _all_of(values: list[Any], kind: type) -> bool:
    return all(type(value) is kind for value in values)  # bool is not int here


def _check_token_ids(value: Any) -> Any:
    if value is not None and not (isinstance(value, list) and _all_of(value, int)):
        raise ValueError("must be a list of token ids")
    return value


def _check_stop(value: Any) -> Any:
    if value is None:
        return value
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not _all_of(value, str):
        raise ValueError("must be a string or a list of strings")
    if len(value) > MAX_STOP_STRINGS:
        raise ValueError(f"holds {len(value)} strings; send at most {MAX_STOP_STRINGS}")
    _check_length(value)
    return value


def _check_texts(value: Any) -> Any:
    if value is None:
        return value
    if not isinstance(value, list) or not _all_of(value, str):
        raise ValueError("must be a list of strings")
    _check_length(value)
    return value


def _check_length(texts: list[str]) -> None:
    length = sum(map(len, texts))
    if length > MAX_TEXTS_CHARS:
        raise ValueError(f"holds {length} characters; send at most {MAX_TEXTS_CHARS}")


Texts = Annotated[Any, BeforeValidator(_check_texts), Field(json_schema_extra={"type": "array"})]
TokenIds = Annotated[Any, BeforeValidator(_check_token_ids), Field(json_schema_extra={"type": "array"})]
PromptField = Annotated[
    Any,
    BeforeValidator(_check_prompt),
    Field(description="A string, a list of strings, a list of token ids, or a list of lists of token ids."),
]
StopField = Annotated[Any, BeforeValidator(_check_stop), Field(description="A string or a list of strings.")]


class StreamOptions(BaseModel):
    """What a stream tells besides its text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class RepetitionDetectionFields(BaseModel):
    """When an output counts as repeating itself."""

    max_pattern_size: int | None = None
    min_pattern_size: int | None = None
    min_count: int | None = None


MAX_ADAPTERS_NAMED = 4096
"""Entries of `lora`: clients of llama.cpp send one per adapter that there is."""


class AdapterScale(BaseModel):
    """An adapter by its id, and how strongly it acts, as llama.cpp has it."""

    id: int
    scale: float = Field(ge=0, le=MAX_ADAPTER_SCALE)


class ModelRequest(BaseModel):
    """Anything that names a model. Unknown fields are ignored, as other servers do."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None


class LlamaCppSampling(BaseModel):
    """Samplers that llama.cpp's server has, by its names."""

    typical_p: float | None = None
    top_n_sigma: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: Texts = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None


class GenerationRequest(ModelRequest, LlamaCppSampling):
    """Fields that chat and plain completions share."""

    # what and how much
    n: int | None = None
    best_of: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    # sampling
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: TokenIds = None
    vllm_xargs: dict[str, Any] | None = None
    bad_words: Texts = None
    # the prompt
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    # when it ends, and how it reads
    stop: StopField = None
    stop_token_ids: TokenIds = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    echo: bool | None = None
    repetition_detection: RepetitionDetectionFields | None = None
    thinking_token_budget: int | None = None
    logprob_token_ids: TokenIds = None
    prompt_logprobs: int | None = None
    # the form it must have: one of these
    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    guided_json_object: Any = None
    guided_whitespace_pattern: Any = None
    guided_decoding_backend: Any = None
    grammar: Any = None
    json_schema: Any = None
    # how it is delivered
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stream_interval: int | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    # beam search in place of sampling
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None
    # the adapter, besides its name in `model`
    lora_scale: float | None = Field(None, ge=0, le=MAX_ADAPTER_SCALE)
    lora: Annotated[list[AdapterScale], STOP_AT_FIRST, Field(max_length=MAX_ADAPTERS_NAMED)] | None = None
    # how it is served
    timeout_ms: float | None = None
    t_max_predict_ms: float | None = None
    priority: int | None = None
    request_id: RequestId | None = None
    cache_salt: str | None = None
    # taken for OpenAI's clients; nothing depends on them
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    prediction: Any = None

    @model_validator(mode="after")
    def _check_stream_options(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        if self.prompt_logprobs is not None and self.stream:
            raise ValueError("prompt_logprobs cannot be streamed; leave out stream or prompt_logprobs")
        return self

    @property
    def includes_usage(self) -> bool:
        """Whether the stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def includes_usage_in_chunks(self) -> bool:
        """Whether every chunk carries the usage so far."""
        return self.includes_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)


class CompletionRequest(GenerationRequest):
    """Body of `POST /v1/completions`."""

    prompt: PromptField
    logprobs: int | None = None
    add_special_tokens: bool | None = None

    @model_validator(mode="after")
    def _check_prompt_and_logprobs(self) -> CompletionRequest:
        if self.logprobs is not None and self.logprobs < -1:
            raise ValueError("logprobs must be at least 0, or -1 for the whole vocabulary")
        return self

    @property
    def only_echoes(self) -> bool:
        """Whether the prompt alone is to be told, as OpenAI has it for `max_tokens: 0`."""
        return bool(self.echo) and self.max_tokens == 0


class TemplateFields(BaseModel):
    """Fields that steer how a conversation becomes a prompt."""

    messages: Annotated[list[ChatMessage], STOP_AT_FIRST, Field(min_length=1)]
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: Annotated[list[dict[str, str]], STOP_AT_FIRST] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    tools: Annotated[list[Tool], STOP_AT_FIRST, Field(min_length=1, max_length=MAX_TOOLS)] | None = None

    @model_validator(mode="after")
    def _check_ending(self) -> TemplateFields:
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message and add_generation_prompt exclude each other; set one of them")
        for forbidden in ("chat_template", "tokenize"):
            if forbidden in (self.chat_template_kwargs or {}):
                raise ValueError(f"chat_template_kwargs must not contain {forbidden}")
        return self

    @property
    def begins_answer(self) -> bool:
        """Whether the prompt ends with the opening of a new message; the default unless one is continued."""
        if self.add_generation_prompt is None:
            return not self.continue_final_message
        return self.add_generation_prompt


class ChatCompletionRequest(GenerationRequest, TemplateFields):
    """Body of `POST /v1/chat/completions`."""

    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    # tools and reasoning
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[FunctionDefinition], STOP_AT_FIRST, Field(min_length=1, max_length=MAX_TOOLS)] | None = (
        None
    )
    function_call: Literal["none", "auto"] | FunctionName | None = None
    include_reasoning: bool | None = None

    @model_validator(mode="after")
    def _check_logprobs(self) -> ChatCompletionRequest:
        if self.top_logprobs is not None:
            if self.top_logprobs < -1:
                raise ValueError("top_logprobs must be at least 0, or -1 for the whole vocabulary")
            if self.top_logprobs != 0 and not self.logprobs:
                raise ValueError("top_logprobs needs logprobs: true")
            if self.top_logprobs and self.logprob_token_ids:
                raise ValueError("top_logprobs and logprob_token_ids exclude each other; set one of them")
        if self.logprob_token_ids and not self.logprobs:
            raise ValueError("logprob_token_ids needs logprobs: true")
        return self

    @model_validator(mode="after")
    def _check_tools(self) -> ChatCompletionRequest:
        if self.functions is not None and self.tools is not None:
            raise ValueError("functions is the first form of tools; send one of them")
        if self.has_legacy_functions:
            checked_tools(self.offered_tools, self.chosen_tool, "functions")
        else:
            checked_tools(self.tools, self.tool_choice, "tools")
        return self

    @property
    def has_legacy_functions(self) -> bool:
        """Whether the request speaks of functions in the form that OpenAI had before tools."""
        return self.functions is not None or self.function_call is not None

    @property
    def offered_tools(self) -> list[Tool] | None:
        """The tools, in either form."""
        return self.tools if self.functions is None else [Tool(function=function) for function in self.functions]

    @property
    def chosen_tool(self) -> ToolChoice | None:
        """The choice among the tools, in either form."""
        if isinstance(self.function_call, FunctionName):
            return NamedToolChoice(function=self.function_call)
        return self.tool_choice if self.function_call is None else self.function_call

    @property
    def num_past_tool_calls(self) -> int:
        """Tool calls in the conversation so far."""
        return sum(len(message.tool_calls or ()) for message in self.messages)


class TokenizeTextRequest(ModelRequest):
    """Body of `POST /tokenize` with a text."""

    prompt: str
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeChatRequest(ModelRequest, TemplateFields):
    """Body of `POST /tokenize` with a conversation."""

    return_token_strs: bool | None = None


class DetokenizeRequest(ModelRequest):
    """Body of `POST /detokenize`."""

    tokens: TokenIds

    @model_validator(mode="after")
    def _check_tokens(self) -> DetokenizeRequest:
        if self.tokens is None:
            raise ValueError("tokens must be a list of token ids")
        return self
