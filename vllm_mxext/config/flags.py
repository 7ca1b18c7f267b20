"""A flag of the registry: its name, values, help and variables, kept as metadata of a dataclass field."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from vllm_mxext.config.values import ValueKind
from vllm_mxext.envs import FLAG_PREFIX

_METADATA_KEY = "flag"


@dataclass(frozen=True, slots=True)
class FlagFacts:
    """What the registry knows of a flag besides its name and default.

    Attributes:
        kind: its values.
        help: one sentence for help and documentation.
        variables: environment variables that set it besides `VLLM_MXEXT_<NAME>`.
        is_secret: never print the value.
        is_offline: also a keyword argument of `LLM`.
    """

    kind: ValueKind
    help: str
    variables: tuple[str, ...] = ()
    is_secret: bool = False
    is_offline: bool = True


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of the registry.

    Attributes:
        group: the group's name, a field of `AppConfig`.
        field: name of the dataclass field and keyword argument.
        default: value when nothing sets it.
        facts: the rest.
    """

    group: str
    field: str
    default: Any
    facts: FlagFacts

    @property
    def name(self) -> str:
        """The long flag without dashes in front: `max-model-len`."""
        return self.field.replace("_", "-")

    @property
    def variables(self) -> tuple[str, ...]:
        """Environment variables that set it, the strongest first."""
        return (FLAG_PREFIX + self.field.upper(), *self.facts.variables)


def flag(default: Any, kind: ValueKind, help_text: str, **facts: Any) -> Any:
    """Returns a dataclass field that is a flag; `facts` are those of `FlagFacts`."""
    return field(default=default, metadata={_METADATA_KEY: FlagFacts(kind, help_text, **facts)})


def server_flag(default: Any, kind: ValueKind, help_text: str, **facts: Any) -> Any:
    """Returns a dataclass field that is a flag of the server alone, not an argument of `LLM`."""
    return flag(default, kind, help_text, is_offline=False, **facts)


def flags_of(group: str, options: type) -> Iterator[Flag]:
    """Yields the flags of one dataclass, in its order."""
    for entry in fields(options):
        yield Flag(group, entry.name, entry.default, entry.metadata[_METADATA_KEY])
