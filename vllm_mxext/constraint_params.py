"""Parameters that constrain the form of the output; fields of `SamplingParams`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm_mxext.errors import InvalidRequestError

CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
"""Fields of `StructuredOutputsParams` of which exactly one is set."""


@dataclass(frozen=True, slots=True)
class StructuredOutputsParams:
    """The form an output must have; exactly one constraint (names as in vLLM 0.32).

    Attributes:
        json: JSON schema, as text or as its parsed form.
        regex: regular expression of the whole output.
        choice: texts of which the output is one.
        grammar: Lark or EBNF grammar.
        json_object: any JSON object.
        structural_tag: schemas between tags, as JSON text.
        disable_any_whitespace: no optional whitespace in JSON.
        disable_additional_properties: objects have no properties but those their schema names.
        whitespace_pattern: regular expression of optional whitespace in JSON.

    Raises:
        InvalidRequestError: no constraint, or several.
    """

    json: Any = None
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in CONSTRAINTS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            said = ", ".join(given) or "none"
            raise InvalidRequestError(
                f"structured_outputs must have exactly one of {', '.join(CONSTRAINTS)}, got {said}.",
                param="structured_outputs",
            )


@dataclass(frozen=True, slots=True)
class RepetitionDetectionParams:
    """When an output counts as repeating itself.

    Attributes:
        max_pattern_size: longest pattern looked for, in tokens.
        min_pattern_size: shortest one.
        min_count: repetitions that end the output.

    Raises:
        InvalidRequestError: a value is out of range.
    """

    max_pattern_size: int
    min_pattern_size: int = 1
    min_count: int = 2

    def __post_init__(self) -> None:
        is_sound = 1 <= self.min_pattern_size <= self.max_pattern_size and self.min_count >= 2
        if not is_sound:
            raise InvalidRequestError(
                "repetition_detection needs 1 <= min_pattern_size <= max_pattern_size and min_count >= 2.",
                param="repetition_detection",
            )
