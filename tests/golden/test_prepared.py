"""Prepared files: the second start gives the tokens and logits of the first, without reading the checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.golden.comparison import make_prompts
from tests.golden.conftest import Checkpoint
from tests.golden.engine import kernel_sets, serve
from tests.golden.models import MODELS, TinyModel
from vllm_mxext.config.engine import DType, PreparedConfig, Quantization
from vllm_mxext.native.kernels.library import TORCH_ISA
from vllm_mxext.native.models import weights
from vllm_mxext.native.models.checkpoint import SafetensorsSource
from vllm_mxext.native.models.prepared import memory, store

_COMPILED = [name for name in kernel_sets() if name != TORCH_ISA]
_VARIANTS = ("llama_biases_mqa", "llama_mha_tied", "llama_sharded", "qwen3", "qwen3_mixed_windows")


class ClosedSource(SafetensorsSource):
    """A checkpoint of which nothing may be read but the headers."""

    def read(self, name: str, target: torch.Tensor) -> None:
        raise AssertionError(f"{name} was read from the checkpoint")


@pytest.fixture(autouse=True)
def _prepare_tiny_models_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MIN_WEIGHTS_BYTES", 0)
    monkeypatch.setattr(store, "_WRITE_DELAY_S", 0.0)


@pytest.mark.promise("LOAD-3")
@pytest.mark.parametrize("how", ["mapped if the system can", "read"])
@pytest.mark.parametrize(
    ("dtype", "quantization"), [("bfloat16", "none"), ("float32", "none"), ("bfloat16", "int8"), ("float16", "int8")]
)
@pytest.mark.parametrize("model", [model for model in MODELS if model.name in _VARIANTS], ids=lambda model: model.name)
@pytest.mark.parametrize("kernels", _COMPILED)
def test_the_second_start_gives_the_logits_of_the_first(
    model: TinyModel,
    kernels: str,
    dtype: DType,
    quantization: Quantization,
    how: str,
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, prompts = checkpoint(model, dtype), make_prompts((3, 17, 40))
    prepared = PreparedConfig(tmp_path, 2**30)
    first = serve(folder, dtype, prompts, kernels=kernels, quantization=quantization, prepared=prepared).answers
    if how == "read":
        monkeypatch.setattr(memory, "map_data", lambda *_arguments: None)
    monkeypatch.setattr(weights, "SafetensorsSource", ClosedSource)
    second = serve(folder, dtype, prompts, kernels=kernels, quantization=quantization, prepared=prepared).answers
    for expected, answer in zip(first, second, strict=True):
        assert answer.token_ids == expected.token_ids
        assert torch.equal(answer.stacked, expected.stacked)
