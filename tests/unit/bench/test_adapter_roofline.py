"""What adapters cost."""

from __future__ import annotations

import pytest
import torch

from vllm_mxext.bench import adapter_roofline
from vllm_mxext.bench.adapter_roofline import ADAPTED, AdapterStep, adapter_operations, adapter_steps
from vllm_mxext.bench.kernels import LINEARS
from vllm_mxext.native.kernels.torch_kernels import TorchKernels


def test_adapters_are_on_linear_layers_of_the_model() -> None:
    for name, (in_features, outputs) in ADAPTED.items():
        assert LINEARS[name] == (sum(outputs), in_features)


def test_the_report_covers_decoding_with_one_and_many_adapters_and_a_prompt() -> None:
    assert {(step.adapters, step.num_rows) for step in adapter_steps()} == {(1, 1), (8, 8), (8, 32), (1, 512)}


def test_every_layer_comes_with_bytes_and_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_roofline, "COLD_BYTES", 1)
    step = AdapterStep(adapters=2, rows_each=3, rank=8)
    kernels = TorchKernels(torch.device("cpu"))
    operations = {operation.name: operation for operation in adapter_operations(kernels, torch.float32, step)}
    assert set(operations) == {f"adapters {name}" for name in ADAPTED}
    down = operations["adapters down"]
    assert len(down.runs) == 2
    down.runs[0]()
    weights = 2 * 8 * (3072 + 1024)
    assert down.num_bytes == 4 * (weights + 6 * 3072 + 2 * 6 * 1024)
    assert down.flops == 2 * 3 * weights
