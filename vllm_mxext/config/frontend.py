"""Concrete, frozen configuration of the engine's front side: admission, sampling defaults, chat template."""

from __future__ import annotations

from dataclasses import dataclass, field


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
        chat_template: template text that replaces the tokenizer's, or None.
        stream_interval: tokens per streamed output, for requests that do not say.
        structured_outputs: rules for structured JSON.
    """

    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    default_sampling: dict[str, float | int] = field(default_factory=dict)
    chat_template: str | None = None
    stream_interval: int = 1
    structured_outputs: StructuredOutputsConfig = field(default_factory=StructuredOutputsConfig)
