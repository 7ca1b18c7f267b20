"""What transformers says: greedy tokens and logits of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM


@cache
def reference(folder: Path, dtype: torch.dtype) -> Reference:
    """The `Reference` of a folder, read once."""
    return Reference(folder, dtype)


class Reference:
    """A checkpoint in transformers with plain (`eager`) attention.

    Args:
        folder: the checkpoint.
        dtype: element type to run in.
    """

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
        self._model = model.eval()

    @torch.inference_mode()
    def greedy(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """Tokens that `generate()` appends."""
        inputs = torch.tensor([list(prompt)])
        output = self._model.generate(
            inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=num_tokens, do_sample=False
        )
        return [int(token_id) for token_id in output[0, len(prompt) :]]

    @torch.inference_mode()
    def logits(self, prompt: Sequence[int], output: Sequence[int]) -> torch.Tensor:
        """Logits `[len(output), vocab_size]` float32 at the positions from which each output token was chosen."""
        token_ids = torch.tensor([[*prompt, *output]])
        all_logits = self._model(token_ids, use_cache=False).logits[0].float()
        return all_logits[len(prompt) - 1 : -1]
