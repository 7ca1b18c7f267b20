"""Adapters on int8 and int4 weights, DoRA's lengths among them: close to what they are on the plain model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.golden.adapters import ATTENTION, MLP, AdaptedEngine, AdaptedPrompt, TinyAdapter
from tests.golden.comparison import make_prompts, relative_error
from tests.golden.conftest import Checkpoint
from tests.golden.engine import kernel_sets, recorded_logits
from tests.golden.models import TinyModel
from tests.golden.reference import Reference, reference
from tests.int4_checkpoints import FORMATS, save_exact, save_int4
from vllm_mxext.config.engine import Quantization

PLAIN = TinyAdapter("plain", 8, (*ATTENTION, *MLP))
DORA = TinyAdapter("dora", 8, (*ATTENTION, *MLP), uses_dora=True)
LOGIT_ERROR = 0.08
"""Norm of the logits' difference over the norm of the exact ones, as for the models alone."""

MODEL = TinyModel("int4_llama", "Llama", {"intermediate_size": 128})


@pytest.mark.promise("LORA-2")
@pytest.mark.parametrize("kernels", kernel_sets())
@pytest.mark.parametrize("adapter", [PLAIN, DORA], ids=lambda adapter: adapter.name)
@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_an_adapter_on_few_bits_is_close_to_merged_weights(
    bits: str, adapter: TinyAdapter, kernels: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    base = exact = checkpoint(MODEL, "float32")
    quantization: Quantization = "int8"
    if bits == "int4":
        base, exact, quantization = tmp_path / "int4", tmp_path / "exact", "none"
        save_exact(checkpoint(MODEL, "float32"), exact, save_int4(checkpoint(MODEL, "float32"), base, FORMATS[0]))
    folder = adapter.write(exact, tmp_path / "adapter")
    merged = Reference(adapter.merge(exact, folder, tmp_path / "merged"), torch.float32)
    engine = AdaptedEngine(base, {"own": folder}, kernels=kernels, quantization=quantization)
    for prompt in make_prompts((5, 40)):
        with recorded_logits() as rows:
            (tokens,) = engine.serve([AdaptedPrompt(prompt.token_ids, "own", num_tokens=3)])
        ours, truth = torch.cat(rows), merged.logits(prompt.token_ids, tokens)
        without = reference(exact, torch.float32).logits(prompt.token_ids, tokens)
        assert 0 < relative_error(ours, truth) < LOGIT_ERROR < relative_error(without, truth) / 4
