"""Locates the small model and the adapters that ship inside the package."""

from __future__ import annotations

from pathlib import Path

BUILTIN_MODEL_NAME = "mx-tiny"
"""Name under which the built-in model is served."""

BUILTIN_ALIASES = (BUILTIN_MODEL_NAME, "builtin")
"""What may be given in place of its folder."""

_ROOT = Path(__file__).resolve().parent


def model_path() -> Path:
    """Return the folder of the built-in model, in Hugging Face layout."""
    return _ROOT / BUILTIN_MODEL_NAME


def adapter_names() -> tuple[str, ...]:
    """Return the names of the LoRA adapters that ship with the built-in model."""
    return tuple(sorted(path.parent.name for path in (_ROOT / "adapters").glob("*/adapter_config.json")))


def adapter_path(name: str) -> Path:
    """Return the folder of a built-in LoRA adapter, in PEFT layout.

    Raises:
        ValueError: If no adapter of this name ships with the package.
    """
    if name not in adapter_names():
        raise ValueError(f"no built-in adapter is called {name!r}; there are: {', '.join(adapter_names())}")
    return _ROOT / "adapters" / name
