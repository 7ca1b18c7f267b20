"""Shares of the machine's limits."""

from __future__ import annotations

import itertools

import pytest
import torch

from vllm_mxext.bench.roofline import Limits, Operation, Roofline, Step, steps
from vllm_mxext.native.kernels.torch_kernels import TorchKernels

LIMITS = Limits(read_bytes=1000.0, linear_flops=200.0, attention_flops=100.0)


def test_a_query_sees_the_keys_up_to_its_own() -> None:
    assert Step("decode", (1, 1), (5, 7)).num_pairs == 12
    assert Step("prefill", (4,), (4,)).num_pairs == 1 + 2 + 3 + 4
    assert Step("chunk", (2,), (5,)).num_pairs == 4 + 5


@pytest.mark.parametrize(
    ("num_bytes", "flops", "is_linear", "limit_s"), [(500, 0, False, 0.5), (0, 200, True, 1.0), (0, 200, False, 2.0)]
)
def test_the_limit_is_the_slower_of_memory_and_instructions(
    num_bytes: int, flops: int, is_linear: bool, limit_s: float
) -> None:
    ticks = itertools.count(step=4.0)
    operation = Operation("demo", 3, num_bytes, flops, [lambda: None], is_linear)
    figure = operation.measure(LIMITS, lambda: next(ticks), budget_s=1.0)
    assert (figure.seconds, figure.limit_seconds) == (4.0, limit_s)
    assert figure.row(24.0)[-2:] == (f"{limit_s / 4:.0%}", "50.0%")


def test_a_step_lists_its_operations_with_bytes_and_work() -> None:
    step = Step("decode 2 x 20", (1, 1), (20, 20))
    bench = Roofline(TorchKernels(torch.device("cpu")), torch.float32)
    operations = {}
    for operation in bench.operations(step, "none"):
        if operation.name.startswith("linear"):
            break  # they are the full-size matrices of the model
        operation.runs[0]()
        operations[operation.name] = operation
    assert set(operations) == {"add_rms_norm", "silu_mul", "qk norm, rope, KV write", "attention"}
    keys_and_values = 2 * 20 * 2 * 8 * 128 * 4
    queries_and_outputs = 2 * 2 * 16 * 128 * 4
    assert operations["attention"].num_bytes == keys_and_values + queries_and_outputs
    assert operations["attention"].flops == 4 * 16 * 128 * 40


def test_the_report_covers_decoding_and_a_prompt() -> None:
    assert [step.num_tokens for step in steps(256)] == [1, 8, 32, 1024]
