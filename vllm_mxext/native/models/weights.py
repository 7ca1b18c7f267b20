"""Building a decoder from a checkpoint, packed layer by layer as it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from vllm_mxext.config.engine import ModelConfig
from vllm_mxext.config.model_spec import ModelSpec
from vllm_mxext.native.kernels.interface import AttentionGeometry, Kernels, PackedLinear
from vllm_mxext.native.layers.attention import Attention, HeadNorms
from vllm_mxext.native.layers.embedding import Embedding, TableEmbedding, TiedEmbedding
from vllm_mxext.native.layers.linear import Linear
from vllm_mxext.native.layers.mlp import GatedMLP
from vllm_mxext.native.layers.norm import RMSNorm
from vllm_mxext.native.layers.rotary import cos_sin_table
from vllm_mxext.native.models.checkpoint import NoiseSource, SafetensorsSource, Shape, WeightSource
from vllm_mxext.native.models.decoder import DecoderLayer, DecoderWeights
from vllm_mxext.native.models.int4_checkpoint import ignored_suffixes, int4_tensors, read_int4
from vllm_mxext.native.models.prepared.parts import CollectedParts, Parts
from vllm_mxext.native.models.registry import CheckpointLayout, checkpoint_layout

Progress = Callable[[float], None]


def load_weights(
    config: ModelConfig,
    kernels: Kernels,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
    parts: Parts | None = None,
) -> DecoderWeights:
    """Reads and packs a model's weights.

    Args:
        config: model folder, specification, load format and seed.
        kernels: kernel set that packs and will run them.
        dtype: element type to convert to.
        device: where they go.
        progress: called with the share done, from 0 to 1.
        parts: has packed weights from an earlier start, or wants to hear of them; by default neither.

    Raises:
        ConfigError: files are missing, broken or do not fit the specification.
    """
    source: WeightSource
    int4 = config.spec.int4
    if config.load_format == "dummy":
        source = NoiseSource(config.seed)
        if int4 is not None:  # a random order of inputs would need groups of equal size
            int4 = replace(int4, has_input_order=False)
            config = replace(config, spec=replace(config.spec, int4=int4))
    else:
        source = SafetensorsSource(config.path)
    layout = checkpoint_layout(config.spec.architecture)
    ignored = (*layout.ignored_suffixes, layout.head) if config.spec.has_tied_embeddings else layout.ignored_suffixes
    ignored += () if int4 is None else ignored_suffixes(int4)
    source.check(expected_tensors(config.spec, layout), ignored)
    cos_sin = cos_sin_table(config.spec.rope, config.spec.head_dim, config.max_model_len, device)
    return _WeightLoader(config, layout, source, kernels, dtype, device, parts or CollectedParts()).load(
        cos_sin, progress
    )


def expected_tensors(spec: ModelSpec, layout: CheckpointLayout) -> dict[str, Shape]:
    """Name and shape of every tensor a checkpoint of this model has."""
    shapes: dict[str, Shape] = {
        layout.embedding: (spec.vocab_size, spec.hidden_size),
        layout.final_norm: (spec.hidden_size,),
    }
    if not spec.has_tied_embeddings:
        shapes[layout.head] = (spec.vocab_size, spec.hidden_size)
    for layer in range(spec.num_layers):
        prefix = layout.layer_prefix.format(layer=layer)
        shapes |= {prefix + name: shape for name, shape in _layer_tensors(spec, layout).items()}
    return shapes if spec.int4 is None else int4_tensors(spec.int4, shapes, layout.embedding)


def _layer_tensors(spec: ModelSpec, layout: CheckpointLayout) -> dict[str, Shape]:
    q_width, kv_width = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    linears = (
        (layout.q_proj, q_width, spec.hidden_size, spec.has_qkv_bias),
        (layout.k_proj, kv_width, spec.hidden_size, spec.has_qkv_bias),
        (layout.v_proj, kv_width, spec.hidden_size, spec.has_qkv_bias),
        (layout.o_proj, spec.hidden_size, q_width, spec.has_o_bias),
        (layout.gate_proj, spec.intermediate_size, spec.hidden_size, spec.has_mlp_bias),
        (layout.up_proj, spec.intermediate_size, spec.hidden_size, spec.has_mlp_bias),
        (layout.down_proj, spec.hidden_size, spec.intermediate_size, spec.has_mlp_bias),
    )
    shapes: dict[str, Shape] = {layout.attention_norm: (spec.hidden_size,), layout.mlp_norm: (spec.hidden_size,)}
    if spec.has_qk_norm:
        shapes |= {layout.q_norm: (spec.head_dim,), layout.k_norm: (spec.head_dim,)}
    for name, out_features, in_features, has_bias in linears:
        shapes[f"{name}.weight"] = (out_features, in_features)
        if has_bias:
            shapes[f"{name}.bias"] = (out_features,)
    return shapes


class _WeightLoader:
    """Reads tensors from a source and packs them.

    Matrices pass through staging buffers that are kept between layers: memory fresh from the operating system would
    cost a page fault every 4 KiB.
    """

    def __init__(
        self,
        config: ModelConfig,
        layout: CheckpointLayout,
        source: WeightSource,
        kernels: Kernels,
        dtype: torch.dtype,
        device: torch.device,
        parts: Parts,
    ) -> None:
        self._parts = parts
        self._spec = config.spec
        self._quantization = config.quantization
        self._layout = layout
        self._source = source
        self._kernels = kernels
        self._dtype = dtype
        self._device = device
        self._layer_shapes = _layer_tensors(config.spec, layout)
        self._geometries: dict[int | None, AttentionGeometry] = {}
        self._staging = torch.empty(0, dtype=dtype)

    def load(self, cos_sin: torch.Tensor, progress: Progress) -> DecoderWeights:
        spec, layout = self._spec, self._layout
        num_groups = spec.num_layers + 1
        final_norm = RMSNorm(self._kernels, self._own(layout.final_norm, (spec.hidden_size,)), spec.rms_norm_eps)
        # The head needs the largest staging buffer, so it comes first, while little else is in memory.
        embedding, head = self._ends()
        self._staging = torch.empty(0, dtype=self._dtype)
        progress(1 / num_groups)
        layers = []
        for layer in range(spec.num_layers):
            layers.append(self._layer(layer, cos_sin))
            progress((layer + 2) / num_groups)
        return DecoderWeights(embedding, tuple(layers), final_norm, head)

    def _ends(self) -> tuple[Embedding, Linear]:
        """Reads the token embedding and the output head."""
        spec, layout = self._spec, self._layout
        shape = (spec.vocab_size, spec.hidden_size)

        def read_head() -> PackedLinear:
            module = layout.head.removesuffix(".weight")
            if not spec.has_tied_embeddings and self._is_int4(module):
                return self._packed_int4([module], [shape], None)
            weight = self._stage(*shape)
            self._source.read(layout.embedding if spec.has_tied_embeddings else layout.head, weight)
            return self._packed(weight, None)

        head = Linear(self._kernels, self._parts.linear(layout.head, read_head))
        if spec.has_tied_embeddings:
            return TiedEmbedding(self._kernels, head.packed), head
        return TableEmbedding(self._kernels, self._own(layout.embedding, shape)), head

    def _layer(self, layer: int, cos_sin: torch.Tensor) -> DecoderLayer:
        spec, layout, kernels = self._spec, self._layout, self._kernels
        prefix = layout.layer_prefix.format(layer=layer)

        def norm(name: str) -> RMSNorm:
            return RMSNorm(kernels, self._own(prefix + name, self._layer_shapes[name]), spec.rms_norm_eps)

        def linear(*names: str) -> Linear:
            packed = self._parts.linear(prefix + names[0], lambda: self._linear(prefix, names))
            return Linear(kernels, packed)

        head_norms = None
        if spec.has_qk_norm:
            query, key = (self._own(prefix + name, (spec.head_dim,)) for name in (layout.q_norm, layout.k_norm))
            head_norms = HeadNorms(query, key, spec.rms_norm_eps)
        attention = Attention(
            kernels,
            self._geometry(spec.sliding_windows[layer]),
            linear(layout.q_proj, layout.k_proj, layout.v_proj),
            linear(layout.o_proj),
            head_norms,
            cos_sin,
        )
        mlp = GatedMLP(kernels, linear(layout.gate_proj, layout.up_proj), linear(layout.down_proj))
        return DecoderLayer(norm(layout.attention_norm), attention, norm(layout.mlp_norm), mlp)

    def _geometry(self, window: int | None) -> AttentionGeometry:
        spec = self._spec
        if window not in self._geometries:
            self._geometries[window] = AttentionGeometry(
                spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.head_dim**-0.5, window
            )
        return self._geometries[window]

    def _linear(self, prefix: str, names: Sequence[str]) -> PackedLinear:
        """Packs projections stacked along their outputs."""
        shapes = [self._layer_shapes[f"{name}.weight"] for name in names]
        modules = [prefix + name for name in names]
        bias = None
        if f"{names[0]}.bias" in self._layer_shapes:
            bias = self._stacked("bias", modules, shapes, torch.empty(sum(shape[0] for shape in shapes)))
        if self._is_int4(modules[0]):
            return self._packed_int4(modules, shapes, bias)
        weight = self._stage(sum(shape[0] for shape in shapes), shapes[0][1])
        return self._packed(self._stacked("weight", modules, shapes, weight), bias)

    def _stacked(
        self, kind: str, modules: Sequence[str], shapes: Sequence[Shape], target: torch.Tensor
    ) -> torch.Tensor:
        """Reads the tensor `kind` of every module into `target`, one below the other."""
        first = 0
        for module, shape in zip(modules, shapes, strict=True):
            last = first + shape[0]
            self._source.read(f"{module}.{kind}", target[first:last])
            first = last
        return target

    def _is_int4(self, module: str) -> bool:
        return self._spec.int4 is not None and self._spec.int4.covers(module)

    def _packed_int4(self, modules: Sequence[str], shapes: Sequence[Shape], bias: torch.Tensor | None) -> PackedLinear:
        assert self._spec.int4 is not None
        weight = read_int4(self._source, self._spec.int4, modules, shapes)
        return self._kernels.pack_int4(weight, bias)

    def _packed(self, weight: torch.Tensor, bias: torch.Tensor | None) -> PackedLinear:
        return self._kernels.pack_linear(weight, bias, self._quantization)

    def _own(self, name: str, shape: Shape) -> torch.Tensor:
        def read() -> torch.Tensor:
            target = torch.empty(shape, dtype=self._dtype)
            self._source.read(name, target)
            return target.to(self._device)

        return self._parts.tensor(name, read)

    def _stage(self, out_features: int, in_features: int) -> torch.Tensor:
        """A `[out_features, in_features]` buffer, overwritten by the next call; `pack_linear` copies out of it."""
        num_elements = out_features * in_features
        if self._staging.numel() < num_elements:
            self._staging = torch.empty(num_elements, dtype=self._dtype)
        return self._staging[:num_elements].view(out_features, in_features)
