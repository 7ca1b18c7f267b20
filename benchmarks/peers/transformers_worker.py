"""Serves a benchmark with `generate` of transformers: one batch, in the data type of the checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from protocol import Engine, Prompts, serve
from transformers import AutoModelForCausalLM


def load(settings: dict[str, Any]) -> Engine:
    """Loads the checkpoint; the option `dtype` converts it."""
    torch.set_num_threads(settings["num_threads"])
    dtype = settings.get("dtype", "auto")
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=dtype).eval()

    @torch.inference_mode()
    def generate(prompts: Prompts, output_len: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=output_len,
            min_new_tokens=output_len,
            do_sample=False,
            pad_token_id=0,
        )
        tokens: list[list[int]] = output[:, ids.shape[1] :].tolist()
        return tokens

    @torch.inference_mode()
    def logits(prompt: Sequence[int]) -> Iterable[float]:
        values: list[float] = model(torch.tensor([prompt]), logits_to_keep=1).logits[0, -1].float().tolist()
        return values

    return Engine(generate, logits=logits)


if __name__ == "__main__":
    serve(load)
