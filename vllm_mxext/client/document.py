"""`Document`: an answer's JSON as a dictionary whose fields are attributes too: `answer.choices[0].message.content`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_mxext.client.call import Answer


class Document(dict[str, Any]):
    """A JSON object. Fields that a dictionary has methods for (`items`, `get`, …) are reached with brackets only.

    Args:
        fields: of the object; those within become documents too.
        answer: how it came: request id, endpoint, attempts, times; None for events and for what lies within.

    Attributes:
        answer: the same.
    """

    __slots__ = ("answer",)

    def __init__(self, fields: Mapping[str, Any], answer: Answer | None = None) -> None:
        super().__init__({name: _wrapped(value) for name, value in fields.items()})
        self.answer = answer

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"The answer has no field '{name}'; it has {', '.join(self) or 'none'}.") from None

    def __reduce__(self) -> tuple[type[Document], tuple[dict[str, Any], Answer | None]]:
        return Document, (dict(self), self.answer)


def _wrapped(value: Any) -> Any:
    if isinstance(value, dict):
        return Document(value)
    if isinstance(value, list) and value and isinstance(value[0], (dict, list)):  # embeddings are long, and flat
        return [_wrapped(item) for item in value]
    return value
