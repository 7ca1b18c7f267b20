"""`LoadedModel`: one model with its KV cache and buffers on a device; the model that is served, or its draft model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vllm_mxext.config.engine import EngineConfig
from vllm_mxext.native.kernels.interface import Kernels
from vllm_mxext.native.layers.activations import Activations
from vllm_mxext.native.models.decoder import Decoder, ForwardBatch, SideRows
from vllm_mxext.native.models.prepared.store import PreparedWeights, find_prepared_weights
from vllm_mxext.native.models.weights import load_weights
from vllm_mxext.native.worker.kv_cache import KVCache, allocate_kv_cache

LoadProgress = Callable[[float], None]

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Everything one model needs to run.

    Attributes:
        decoder: the forward pass.
        buffers: its activations.
        cache: its KV blocks.
        weights_bytes: its weights and rotary table.
        prepared: its prepared file, if one is used.
    """

    decoder: Decoder
    buffers: Activations
    cache: KVCache
    weights_bytes: int
    prepared: PreparedWeights | None

    def forward(self, batch: ForwardBatch, side_rows: SideRows | None = None) -> torch.Tensor:
        """Computes logits and stores keys and values; see `Decoder.forward`."""
        return self.decoder.forward(batch, self.cache.layers, side_rows)


def load_model(
    config: EngineConfig, kernels: Kernels, *, num_blocks: int, num_logits_rows: int, progress: LoadProgress
) -> LoadedModel:
    """Allocates the KV cache, loads weights and makes the buffers.

    Args:
        config: the engine; its model is the one to load.
        kernels: what it runs on.
        num_blocks: blocks of the KV cache, the null block included.
        num_logits_rows: rows whose logits are computed at once at most.
        progress: called with the share done, from 0 to 1.

    Raises:
        ConfigError: files are missing or broken, or the kernels cannot run this shape.
    """
    model, device, dtype = config.model, torch.device(config.device.device), DTYPES[config.model.dtype]
    # The KV cache comes before the weights: a block or head size that cannot run is told at once.
    cache = allocate_kv_cache(model.spec, config.cache, kernels, num_blocks, dtype, device)
    prepared = find_prepared_weights(config, kernels)
    parts = prepared.open() if prepared else None
    weights = load_weights(model, kernels, dtype, device, progress, parts)
    buffers = Activations(model.spec, config.scheduler.max_num_batched_tokens, num_logits_rows, dtype, device)
    return LoadedModel(Decoder(kernels, weights, buffers), buffers, cache, weights.num_bytes, prepared)
