"""Reads an adapter's weights and arranges them as the model's linear layers take them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vllm_mxext.config.model_spec import ModelSpec
from vllm_mxext.errors import AdapterError
from vllm_mxext.lora.files import EMBEDDING, HEAD, AdapterFiles, ModuleAdapter, ModuleKey, StoredTensor
from vllm_mxext.native.kernels.adapters import AdapterPart, AdapterWeights
from vllm_mxext.native.kernels.interface import Kernels, PackedLinear
from vllm_mxext.native.layers.adapter_ends import AdapterEnds, LowRankEmbedding
from vllm_mxext.native.layers.linear import Linear
from vllm_mxext.native.models.decoder import DecoderWeights

_ROWS_AT_ONCE = 2048
"""Rows of a weight that are unpacked at once to measure their lengths."""


@dataclass(frozen=True, slots=True)
class _Module:
    """The outputs of a linear layer that a module of the checkpoint stands for."""

    key: ModuleKey
    first_output: int
    num_outputs: int


class AdapterReader:
    """Reads adapters for one model; serves one thread at a time.

    Args:
        weights: the model's.
        spec: its shapes.
        kernels: kernel set that packed them, an object that nobody else uses.
        dtype: of the model.
    """

    def __init__(self, weights: DecoderWeights, spec: ModelSpec, kernels: Kernels, dtype: torch.dtype) -> None:
        self._kernels = kernels
        self._dtype = dtype
        self._device = weights.final_norm.weight.device
        self._modules = list(_modules(weights, spec))

    @property
    def linears(self) -> Sequence[Linear]:
        """The linear layers that `read_layers()` is about, in its order."""
        return [linear for linear, _ in self._modules]

    def read_layers(self, files: AdapterFiles) -> dict[int, AdapterWeights]:
        """Reads what an adapter does to linear layers: index in `linears` -> weights; others stay as they are.

        Raises:
            AdapterError: a weight cannot be read, or is NaN or infinite in the model's dtype.
        """
        layers = {}
        for index, (linear, modules) in enumerate(self._modules):
            layer = self._read_layer(files, linear, modules)
            if layer is not None:
                layers[index] = layer
        return layers

    def read_ends(self, files: AdapterFiles) -> AdapterEnds | None:
        """Reads an adapter's own embedding and head; None if it has neither.

        Raises:
            AdapterError: as for `read_layers()`.
        """
        table = head = low_rank = None
        if EMBEDDING in files.saved:
            table = self._read(files, EMBEDDING, files.saved[EMBEDDING], self._dtype).to(self._device)
        if HEAD in files.saved:
            head = self._kernels.pack_linear(self._read(files, HEAD, files.saved[HEAD], self._dtype))
        adapter = files.modules.get(ModuleKey(None, EMBEDDING))
        if adapter is not None:
            a = self._read(files, EMBEDDING, adapter.a, self._dtype)
            b = self._read(files, EMBEDDING, adapter.b, self._dtype)
            low_rank = LowRankEmbedding(
                a.t().contiguous().to(self._device), self._kernels.pack_linear(b), adapter.scaling
            )
        if table is None and head is None and low_rank is None:
            return None
        return AdapterEnds(self._kernels, table, low_rank, head)

    def _read_layer(self, files: AdapterFiles, linear: Linear, modules: Sequence[_Module]) -> AdapterWeights | None:
        parts = []
        gain = torch.ones(linear.packed.out_features)
        bias = torch.zeros(linear.packed.out_features)
        for module in modules:
            outputs = slice(module.first_output, module.first_output + module.num_outputs)
            adapter = files.modules.get(module.key)
            new_bias = files.base_biases.get(module.key)
            if adapter is not None:
                new_bias = adapter.base_bias
                parts.append(self._read_part(files, linear.packed, module, adapter, gain[outputs]))
                if adapter.b_bias is not None:
                    bias[outputs] += adapter.scaling * self._read(files, module.key, adapter.b_bias, torch.float32)
            own_bias = 0.0 if linear.packed.bias is None else linear.packed.bias[outputs].cpu()
            bias[outputs] += (1 - gain[outputs]) * own_bias
            if new_bias is not None:
                bias[outputs] += self._read(files, module.key, new_bias, torch.float32) - own_bias
        has_gain, has_bias = bool((gain != 1).any()), bool((bias != 0).any())
        if not (parts or has_gain or has_bias):
            return None
        return AdapterWeights(tuple(parts), gain if has_gain else None, bias if has_bias else None)

    def _read_part(
        self, files: AdapterFiles, packed: PackedLinear, module: _Module, adapter: ModuleAdapter, gain: torch.Tensor
    ) -> AdapterPart:
        """Reads the low-rank product of a module; with DoRA also sets `gain`, which its rows then have in them."""
        a = self._read(files, module.key, adapter.a, torch.float32)
        b = self._read(files, module.key, adapter.b, torch.float32)
        if adapter.magnitude is not None:
            magnitude = self._read(files, module.key, adapter.magnitude, torch.float32).view(-1)
            gain.copy_(magnitude / self._lengths(packed, module, a, b * adapter.scaling))
            b = b * gain[:, None]
        return AdapterPart(
            module.first_output,
            self._checked(files, module.key, a.to(self._dtype)),
            self._checked(files, module.key, b.to(self._dtype)),
            adapter.scaling,
        )

    def _lengths(self, packed: PackedLinear, module: _Module, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Lengths of the rows of the changed weight (Liu et al. 2024, DoRA, equation 5): `[num_outputs]` float32."""
        lengths = []
        for first in range(0, module.num_outputs, _ROWS_AT_ONCE):
            num_rows = min(_ROWS_AT_ONCE, module.num_outputs - first)
            rows = self._unpack(packed, module.first_output + first, num_rows)
            lengths.append((rows + b[first : first + num_rows] @ a).norm(dim=1))
        return torch.cat(lengths)

    def _unpack(self, packed: PackedLinear, first: int, num_rows: int) -> torch.Tensor:
        """The numbers that some rows of a packed weight stand for: `[num_rows, in_features]` float32."""
        rows = torch.empty(num_rows, packed.in_features, device=self._device)
        indices = torch.arange(first, first + num_rows, dtype=torch.int32, device=self._device)
        self._kernels.tied_embedding(indices, packed, rows)
        return rows.cpu()

    def _read(
        self, files: AdapterFiles, where: ModuleKey | str, stored: StoredTensor, dtype: torch.dtype
    ) -> torch.Tensor:
        try:
            values = np.ascontiguousarray(stored.read())
        except (OSError, ValueError) as error:
            raise AdapterError(f"{files.path} cannot be read ({error}); load the adapter again.") from error
        if stored.dtype == "bfloat16":
            tensor = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(values)
        return self._checked(files, where, tensor.reshape(stored.shape).to(dtype))

    def _checked(self, files: AdapterFiles, where: ModuleKey | str, tensor: torch.Tensor) -> torch.Tensor:
        if not bool(torch.isfinite(tensor).all()):
            name = where if isinstance(where, str) else f"{where.name} of layer {where.layer}"
            raise AdapterError(
                f"{files.path} has weights for {name} that are NaN, infinite or too large for {tensor.dtype}; "
                "train or convert the adapter again."
            )
        return tensor


def _modules(weights: DecoderWeights, spec: ModelSpec) -> Iterator[tuple[Linear, Sequence[_Module]]]:
    """Every linear layer with the modules that are stacked in it."""
    q_width, kv_width = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    hidden, inner = spec.hidden_size, spec.intermediate_size

    def stack(layer: int | None, *sizes: tuple[str, int]) -> list[_Module]:
        modules, first = [], 0
        for name, size in sizes:
            modules.append(_Module(ModuleKey(layer, name), first, size))
            first += size
        return modules

    yield weights.head, stack(None, (HEAD, spec.vocab_size))
    for index, layer in enumerate(weights.layers):
        yield (
            layer.attention.qkv,
            stack(index, ("q_proj", q_width), ("k_proj", kv_width), ("v_proj", kv_width)),
        )
        yield layer.attention.output, stack(index, ("o_proj", hidden))
        yield layer.mlp.gate_up, stack(index, ("gate_proj", inner), ("up_proj", inner))
        yield layer.mlp.down, stack(index, ("down_proj", hidden))
