"""`Imported`: a manifest of another form, written again in ours with the lines it came from, and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from vllm_mxext.hub.manifest.complaints import shown
from vllm_mxext.hub.manifest.document import Node, make
from vllm_mxext.hub.manifest.model import SCHEMA

ENGINES = {
    "native": "native", "vllm": "vllm", "tensorrt_llm": "tensorrt_llm", "trtllm": "tensorrt_llm",
    "tensorrt-llm": "tensorrt_llm", "llama.cpp": "llama.cpp", "llama_cpp": "llama.cpp", "llamacpp": "llama.cpp",
    "mlx": "mlx", "transformers": "transformers", "hf": "transformers",
}  # fmt: skip
"""What others call engines -> what we do."""

PRECISIONS = {
    "bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32",
}  # fmt: skip
"""What others call precisions -> what we do; other names stay as they are."""

_MAX_NOTES = 50


@dataclass(frozen=True, slots=True)
class Imported:
    """A manifest that was in another form.

    Attributes:
        root: as `mx.hub/v1`; its lines are those of the original.
        form: what it was, for people.
        notes: what could not be imported, a sentence each.
    """

    root: Node
    form: str
    notes: tuple[str, ...]


@dataclass(slots=True)
class Notes:
    """Collects what could not be imported; what happens many times is said once."""

    _sentences: list[str] = field(default_factory=list)
    _keys: Counter[str] = field(default_factory=Counter)

    def add(self, sentence: str) -> None:
        """Adds a sentence."""
        self._sentences.append(sentence)

    def add_key(self, kind: str, name: str) -> None:
        """Counts a key that nothing is known to do with."""
        self._keys[f"The {kind} {shown(name)}"] += 1

    def sentences(self) -> tuple[str, ...]:
        """Returns what was collected, the most important first."""
        found = [*self._sentences]
        found += [f"{name} of {number} entries is not imported." for name, number in sorted(self._keys.items())]
        left = len(found) - _MAX_NOTES
        return tuple(found if left <= 0 else [*found[:_MAX_NOTES], f"{left} more things are not imported."])


def catalogue(models: list[Node], line: int) -> Node:
    """Returns models as the root of a file in our form."""
    return make({"schema": SCHEMA, "models": models}, line)


def text(node: Node | None) -> str:
    """Returns a scalar as text, `true` and `false` as YAML has them; empty for anything else."""
    value = None if node is None else node.value
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value).strip() if isinstance(value, (str, int, float)) else ""


def whole_number(node: Node | None, on_error: Callable[[], None]) -> int:
    """Returns a number of at least 1 that may be in quotes; 1 if there is none or another thing is there."""
    value = text(node)
    if value.isascii() and value.isdigit() and len(value) <= 4 and int(value) >= 1:
        return int(value)
    if node is not None:
        on_error()
    return 1
