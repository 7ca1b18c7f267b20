"""Parameters that constrain the form of the output; fields of `SamplingParams`."""

from __future__ import annotations

from dataclasses import dataclass
from json import dumps
from typing import Any

from vllm_mxext.errors import InvalidRequestError

CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
"""Fields of `StructuredOutputsParams` of which exactly one is set."""

BACKENDS = ("auto", "guidance")
"""What a backend may be called: there is one, llguidance."""

MAX_CONSTRAINT_CHARS = 256 * 1024
MAX_JSON_NESTING = 64
_MAX_WHITESPACE_PATTERN_CHARS = 256
_JSON_CONSTRAINTS = ("json", "json_object", "structural_tag")


@dataclass(frozen=True, slots=True)
class StructuredOutputsParams:
    """The form an output must have; exactly one constraint (names as in vLLM 0.32).

    Attributes:
        json: JSON schema, as text or as its parsed form.
        regex: regular expression of the whole output.
        choice: texts of which the output is one.
        grammar: Lark or GBNF (EBNF) grammar.
        json_object: any JSON object.
        structural_tag: schemas between tags, as JSON text or as its parsed form.
        disable_any_whitespace: no optional whitespace in JSON.
        disable_additional_properties: objects have no properties but those their schema names.
        whitespace_pattern: regular expression of optional whitespace in JSON.

    Raises:
        InvalidRequestError: no constraint or several, one of a wrong type, too long or nested too deeply, or an option
            that does not concern it.
    """

    json: Any = None
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Any = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in CONSTRAINTS if getattr(self, name) is not None and getattr(self, name) is not False]
        if len(given) != 1:
            said = ", ".join(given) or "none"
            raise _refusal(f"must have exactly one of {', '.join(CONSTRAINTS)}, got {said}")
        choice: Any = self.choice
        if isinstance(choice, list):
            object.__setattr__(self, "choice", tuple(choice))
        self._check_type(given[0])
        self._check_size(given[0])
        self._check_options(given[0])

    @property
    def constraint(self) -> str:
        """Name of the constraint that is set."""
        return next(
            name for name in CONSTRAINTS if getattr(self, name) is not None and getattr(self, name) is not False
        )

    def _check_type(self, name: str) -> None:
        value = getattr(self, name)
        if name in ("json", "structural_tag"):
            if not isinstance(value, (str, dict)):
                raise _refusal(f"needs {name} to be a JSON object or its text, got {type(value).__name__}")
        elif name == "choice":
            if not isinstance(value, tuple) or not value or not all(isinstance(text, str) and text for text in value):
                raise _refusal("needs choice to be a list of texts that are not empty")
        elif name == "json_object":
            if value is not True:
                raise _refusal(f"needs json_object to be true or false, got {value!r}")
        elif not isinstance(value, str) or not value:
            raise _refusal(f"needs {name} to be a text that is not empty, got {value!r}")

    def _check_size(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, dict):
            depth = json_nesting(value)
            if depth > MAX_JSON_NESTING:
                raise _refusal(f"allows {name} to be nested at most {MAX_JSON_NESTING} levels deep")
            try:
                value = dumps(value)
                value.encode()
            except (TypeError, ValueError) as error:
                raise _refusal(f"needs {name} to be JSON: {error}") from None
        length = sum(map(len, value)) if isinstance(value, tuple) else len(value) if isinstance(value, str) else 0
        if length > MAX_CONSTRAINT_CHARS:
            raise _refusal(f"allows {name} to have at most {MAX_CONSTRAINT_CHARS} characters, got {length}")

    def _check_options(self, name: str) -> None:
        for option in ("disable_any_whitespace", "disable_additional_properties"):
            if not isinstance(getattr(self, option), bool):
                raise _refusal(f"needs {option} to be true or false, got {getattr(self, option)!r}")
        pattern = self.whitespace_pattern
        if pattern is not None:
            if not isinstance(pattern, str) or len(pattern) > _MAX_WHITESPACE_PATTERN_CHARS:
                raise _refusal(
                    f"needs whitespace_pattern to be a text of at most {_MAX_WHITESPACE_PATTERN_CHARS} characters"
                )
            if self.disable_any_whitespace:
                raise _refusal("cannot have both disable_any_whitespace and whitespace_pattern; give one of them")
        options = self.disable_any_whitespace or self.disable_additional_properties or pattern is not None
        if options and name not in _JSON_CONSTRAINTS:
            raise _refusal(f"has options that concern JSON only, but the constraint is {name}; leave them out")


@dataclass(frozen=True, slots=True)
class GuidedDecodingParams:
    """`StructuredOutputsParams` under the name and with the fields of vLLM 0.6.6.

    Attributes:
        json: JSON schema, as text or as its parsed form.
        regex: regular expression of the whole output.
        choice: texts of which the output is one.
        grammar: Lark or GBNF (EBNF) grammar.
        json_object: any JSON object.
        backend: `auto` or `guidance`.
        whitespace_pattern: regular expression of optional whitespace in JSON.

    Raises:
        InvalidRequestError: as `StructuredOutputsParams`, or another backend.
    """

    json: Any = None
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    backend: str | None = None
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        check_backend(self.backend, "backend")
        self.structured_outputs()

    def structured_outputs(self) -> StructuredOutputsParams:
        """Returns the same under today's name."""
        return StructuredOutputsParams(
            json=self.json,
            regex=self.regex,
            choice=self.choice,
            grammar=self.grammar,
            json_object=self.json_object,
            whitespace_pattern=self.whitespace_pattern,
        )


def check_backend(name: object, field: str) -> None:
    """Refuses the name of a backend that is not here; None is the only one.

    Raises:
        InvalidRequestError: another one than `auto` and `guidance`.
    """
    if name is not None and name not in BACKENDS:
        raise InvalidRequestError(
            f"{field} must be auto or guidance: llguidance enforces every constraint here; leave {field} out.",
            param=field,
        )


def _refusal(rule: str) -> InvalidRequestError:
    return InvalidRequestError(f"structured_outputs {rule}.", param="structured_outputs")


def json_nesting(value: Any) -> int:
    """Returns how deep containers are nested, without recursion; stops counting just past the limit."""
    depth, level = 0, [value]
    while level and depth <= MAX_JSON_NESTING:
        level = [item for item in level if isinstance(item, (dict, list, tuple))]
        depth += bool(level)
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


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
