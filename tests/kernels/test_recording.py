"""Recorded kernel calls give what the calls themselves give, for any number of rows."""

from __future__ import annotations

import pytest
import torch

ROWS, HIDDEN, WIDE = 9, 40, 70


class Pass:
    """A few operations on persistent buffers, as a forward pass makes them."""

    def __init__(self, kernels, dtype, quantization):
        random = torch.Generator().manual_seed(6)
        weight = torch.randn(2 * WIDE, HIDDEN, generator=random).to(dtype)
        self.kernels = kernels
        self.norm = torch.randn(HIDDEN, generator=random).to(dtype)
        self.up = kernels.pack_linear(weight, torch.randn(2 * WIDE, generator=random), quantization)
        self.down = kernels.pack_linear(weight[:HIDDEN].repeat(1, 2)[:, :WIDE].contiguous(), None, quantization)
        self.residual = torch.zeros(ROWS, HIDDEN)
        self.normed, self.projected = (torch.zeros(ROWS, HIDDEN, dtype=dtype) for _ in range(2))
        self.wide, self.gated = torch.zeros(ROWS, 2 * WIDE, dtype=dtype), torch.zeros(ROWS, WIDE, dtype=dtype)

    def fill(self, seed):
        random = torch.Generator().manual_seed(seed)
        for buffer in (self.residual, self.projected):
            buffer.copy_(torch.randn(buffer.shape, generator=random))

    def run(self, rows):
        kernels, normed = self.kernels, self.normed[:rows]
        kernels.add_rms_norm(self.projected[:rows], self.residual[:rows], self.norm, 1e-6, normed)
        kernels.linear(normed, self.up, self.wide[:rows])
        kernels.silu_mul(self.wide[:rows], self.gated[:rows])
        kernels.linear(self.gated[:rows], self.down, self.projected[:rows])

    def state(self):
        return torch.cat((self.residual, self.projected), dim=1)


@pytest.mark.promise("KERN-1")
@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("recorded_rows", [1, 4, ROWS])
def test_a_replay_does_what_the_calls_do(kernels, dtype, quantization, recorded_rows):
    forward = Pass(kernels, dtype, quantization)
    with kernels.recording() as recording:
        forward.run(recorded_rows)
    for rows in (ROWS, 1, 6):
        forward.fill(rows)
        forward.run(rows)
        expected = forward.state()
        forward.fill(rows)
        recording.replay(rows)
        assert torch.equal(forward.state(), expected)


def test_calls_after_the_recording_are_not_part_of_it(kernels, dtype):
    forward = Pass(kernels, dtype, "none")
    with kernels.recording() as recording:
        forward.run(2)
    forward.fill(1)
    before = forward.state()
    kernels.silu_mul(torch.ones(1, 4).to(dtype), torch.empty(1, 2).to(dtype))
    recording.replay(0)
    assert torch.equal(forward.state(), before)
