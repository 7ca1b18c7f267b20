"""`Activations`: the buffers a forward pass writes to, allocated once."""

from __future__ import annotations

import torch

from vllm_mxext.config.model_spec import ModelSpec


class Activations:
    """Activation buffers of a decoder, shared by all its layers.

    Args:
        spec: sizes of the model.
        max_num_tokens: rows of the per-token buffers (the token budget).
        num_logits_rows: rows whose logits are computed at once at most.
        dtype: element type of activations; the residual stream and logits are float32.
        device: where they live.
    """

    def __init__(
        self, spec: ModelSpec, max_num_tokens: int, num_logits_rows: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        def rows(count: int, width: int, kind: torch.dtype = dtype) -> torch.Tensor:
            return torch.empty(count, width, dtype=kind, device=device)

        qkv_width = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
        self.residual = rows(max_num_tokens, spec.hidden_size, torch.float32)
        self.normed = rows(max_num_tokens, spec.hidden_size)
        self.projected = rows(max_num_tokens, spec.hidden_size)
        self.qkv = rows(max_num_tokens, qkv_width)
        self.attended = rows(max_num_tokens, spec.num_heads * spec.head_dim)
        self.gate_up = rows(max_num_tokens, 2 * spec.intermediate_size)
        self.activated = rows(max_num_tokens, spec.intermediate_size)
        num_rows = min(num_logits_rows, max_num_tokens)
        self.sampled_residual = rows(num_rows, spec.hidden_size, torch.float32)
        self.sampled_attended = rows(num_rows, spec.num_heads * spec.head_dim)
        self.logits = rows(num_rows, spec.vocab_size, torch.float32)

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers together."""
        return sum(buffer.nbytes for buffer in vars(self).values())
