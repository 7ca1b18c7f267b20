"""Chat templates for checkpoints that bring none, by model type."""

from __future__ import annotations

from collections.abc import Container

_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' "
    "}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_CHATML_MODEL_TYPES = frozenset({"qwen", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"})


def builtin_template(model_type: str, vocabulary: Container[str]) -> str | None:
    """Returns the template of a family whose models have all been trained with one, or None.

    Args:
        model_type: `model_type` of `config.json`.
        vocabulary: the tokenizer's tokens; the template is of use only if its marks are among them.
    """
    if model_type in _CHATML_MODEL_TYPES and "<|im_start|>" in vocabulary and "<|im_end|>" in vocabulary:
        return _CHATML
    return None
