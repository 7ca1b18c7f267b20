"""Concrete, frozen configuration of the engine's front side: admission, sampling defaults, chat template."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

ContentFormatName = Literal["auto", "string", "openai"]
"""Form of message content for chat templates: read off the template, plain text, or lists of parts."""


@dataclass(frozen=True, slots=True)
class AdmissionConfig:
    """Limits of the waiting queue; None = no limit.

    Attributes:
        max_num_queued_reqs: requests waiting at most, beyond `max_num_seqs` running ones.
        max_num_queued_tokens: prompt tokens waiting at most.
    """

    max_num_queued_reqs: int | None = None
    max_num_queued_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ChatTemplateConfig:
    """How conversations are rendered unless a request says otherwise.

    Attributes:
        chat_template: a template, or the name of one of the tokenizer's; None is the tokenizer's own choice.
        content_format: form of message content that the template gets.
        kwargs: variables of the template.
    """

    chat_template: str | None = None
    content_format: ContentFormatName = "auto"
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StructuredOutputsConfig:
    """Rules for structured JSON that requests do not set themselves.

    Attributes:
        disable_any_whitespace: no optional whitespace unless a request brings a pattern.
        disable_additional_properties: objects have no properties but those their schema names.
    """

    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False


@dataclass(frozen=True, slots=True)
class FrontendConfig:
    """What turns text into engine requests needs besides the tokenizer.

    Attributes:
        admission: limits of the waiting queue.
        default_sampling: `SamplingParams` field -> value for fields that a request leaves open.
        templates: how conversations are rendered.
        stream_interval: tokens per streamed output, for requests that do not say.
        structured_outputs: rules for structured JSON.
        reasoning_parser: name of the reasoning parser, which knows the marks that limits of reasoning need, or `auto`.
        parser_plugin: Python file with further parsers.
    """

    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    default_sampling: dict[str, float | int] = field(default_factory=dict)
    templates: ChatTemplateConfig = field(default_factory=ChatTemplateConfig)
    stream_interval: int = 1
    structured_outputs: StructuredOutputsConfig = field(default_factory=StructuredOutputsConfig)
    reasoning_parser: str | None = None
    parser_plugin: Path | None = None
