"""How much memory a profile takes on each device and on the host, before anything is downloaded.

For the native engine see `native_plan`. For other engines this is arithmetic over the model's shape, plus shares for
drivers, graphs and processes that are rules of thumb: nobody has measured them.
"""

from __future__ import annotations

from typing import Any

from vllm_mxext.config.options import CacheOptions, LoRAOptions
from vllm_mxext.hub.judgement import Estimate
from vllm_mxext.hub.manifest.model import Artifact, EngineName, ModelEntry, Profile
from vllm_mxext.hub.model_shape import ModelShape

_GIB = 2**30

_OVERHEAD: dict[EngineName, int] = {
    "native": _GIB // 2,
    "vllm": _GIB,
    "tensorrt_llm": 3 * _GIB // 2,
    "llama.cpp": _GIB // 2,
    "mlx": _GIB // 2,
    "transformers": _GIB,
}
"""Per device: the driver's context, graphs, workspaces."""

_COLLECTIVES_BYTES = _GIB // 2
"""Per device: buffers with which several of them talk."""

_HOST_BYTES: dict[EngineName, int] = {
    "native": _GIB,
    "vllm": 4 * _GIB,
    "tensorrt_llm": 6 * _GIB,
    "llama.cpp": _GIB // 2,
    "mlx": _GIB // 2,
    "transformers": 2 * _GIB,
}
_HOST_BYTES_PER_DEVICE = 2 * _GIB
"""Each further device has a process of its own."""

_STEP_TOKENS = 8192
_LOGITS_ROWS = 256
_SMALL_STEP_TOKENS = 512
_SMALL_ENGINES: frozenset[EngineName] = frozenset({"llama.cpp", "mlx"})
"""They compute 512 tokens of one request at a time; the others 8,192 of up to 256, unless flags say otherwise."""

_BITS = {
    "fp32": 32.0, "bf16": 16.0, "fp16": 16.0, "fp8": 8.0, "int8": 8.0, "w8a8": 8.0, "w8a16": 8.0,
    "int4": 4.25, "awq": 4.25, "gptq": 4.25, "w4a16": 4.25, "mxfp4": 4.25, "nvfp4": 4.5, "4bit": 4.5, "8bit": 8.5,
    "q8_0": 8.5, "q6_k": 6.56, "q5_k_m": 5.69, "q5_k_s": 5.54, "q4_k_m": 4.85, "q4_k_s": 4.58, "q4_0": 4.5,
    "q3_k_m": 3.91, "q2_k": 3.35,
}  # fmt: skip
"""Bits of a weight with its share of scales; those of GGUF are averages over a model (llama.cpp, tools/quantize)."""

_WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".npz", ".engine", ".onnx")


def estimate_shape(
    entry: ModelEntry, profile: Profile, shape: ModelShape, max_model_len: int, num_requests: int = 1
) -> Estimate:
    """Estimates a profile by the sizes of its model.

    Args:
        entry: the model.
        profile: the profile.
        shape: sizes of the model.
        max_model_len: tokens of the longest request.
        num_requests: longest requests that the KV cache holds.
    """
    tags, flags = profile.tags, flags_of(profile)
    is_small = tags.llm_engine in _SMALL_ENGINES
    num_devices = tags.tp * tags.pp
    share_of_layers = -(-shape.num_layers // tags.pp) / shape.num_layers
    share_of_heads = -(-shape.num_kv_heads // tags.tp) / shape.num_kv_heads
    elements = shape.cached_elements(max_model_len, share_of_heads) * share_of_layers
    tokens = int(flags.get("max_num_batched_tokens") or (_SMALL_STEP_TOKENS if is_small else _STEP_TOKENS))
    rows = int(flags.get("max_num_seqs") or (1 if is_small else _LOGITS_ROWS))
    width = 3 * shape.hidden_size + 2 * shape.inner_size // tags.tp
    return Estimate(
        weights=_weights_bytes(entry, profile, shape, share_of_layers),
        kv_cache=int(elements * num_requests * (1 if _has_small_kv(flags) else 2)),
        activations=2 * tokens * width + 2 * 4 * rows * shape.vocab_size,  # logits, and a copy to sample from
        adapters=_adapter_bytes(entry, profile, shape) // tags.tp,
        overhead=_OVERHEAD[tags.llm_engine] + (_COLLECTIVES_BYTES if num_devices > 1 else 0),
        host=_HOST_BYTES[tags.llm_engine] + (num_devices - 1) * _HOST_BYTES_PER_DEVICE,
        disk=disk_bytes(entry, profile),
        max_model_len=max_model_len,
        num_requests=num_requests,
    )


def estimate_files(entry: ModelEntry, profile: Profile) -> Estimate | None:
    """Estimates a profile whose model's shape is not known, by its files or parameters; None if these are not either.

    There is no KV cache in it.
    """
    disk = disk_bytes(entry, profile)
    if not disk:
        return None
    tags = profile.tags
    num_devices = tags.tp * tags.pp
    listed = _listed_bytes(artifact_of(entry, profile), _WEIGHT_SUFFIXES)
    return Estimate(
        weights=(listed or int(entry.num_parameters * bits_of(tags.precision) / 8)) // num_devices,
        kv_cache=0,
        activations=0,
        adapters=0,
        overhead=_OVERHEAD[tags.llm_engine],
        host=_HOST_BYTES[tags.llm_engine],
        disk=disk,
        max_model_len=0,
        num_requests=0,
    )


def disk_bytes(entry: ModelEntry, profile: Profile) -> int:
    """Returns the bytes of the files that a profile needs: as the manifest lists them, or else by arithmetic."""
    listed = _listed_bytes(artifact_of(entry, profile))
    is_converted = profile.tags.llm_engine == "native" and "quantization" in flags_of(profile)
    bits = 16.0 if is_converted else bits_of(profile.tags.precision)  # converted when it is loaded
    return listed or int(entry.num_parameters * bits / 8)


def artifact_of(entry: ModelEntry, profile: Profile) -> Artifact | None:
    """Returns the files that a profile names, or the only ones that there are."""
    if profile.artifact is None:
        return entry.artifacts[0] if len(entry.artifacts) == 1 else None
    return next((artifact for artifact in entry.artifacts if artifact.name == profile.artifact), None)


def flags_of(profile: Profile) -> dict[str, Any]:
    """Returns the profile's settings, named with underscores."""
    return {name.replace("-", "_"): value for name, value in profile.engine_args.items()}


def lora_flags(profile: Profile) -> dict[str, Any]:
    """Returns the profile's settings of adapters, named with underscores."""
    return {name.replace("-", "_"): value for name, value in profile.lora.items()}


def serves_adapters(entry: ModelEntry, profile: Profile) -> bool:
    """Whether a server with this profile keeps memory for adapters: a flag says so, or the model comes with some."""
    given = flags_of(profile).get("enable_lora")
    has_own = profile.tags.feat_lora and any(adapter.is_loaded_at_start for adapter in entry.adapters)
    return has_own if given is None else str(given).lower() in ("true", "1", "yes", "on")


def memory_share(profile: Profile) -> float:
    """Returns the share of a device's memory that the engine may take in all."""
    if profile.tags.llm_engine in _SMALL_ENGINES and profile.device.kind == "gpu":
        return 1.0  # Apple's devices are given a share of the memory already
    return float(flags_of(profile).get("gpu_memory_utilization") or CacheOptions().gpu_memory_utilization)


def bits_of(precision: str) -> float:
    """Returns the bits of a weight; 16 for a precision that is not known."""
    return _BITS.get(precision.lower(), 16.0)


def _weights_bytes(entry: ModelEntry, profile: Profile, shape: ModelShape, share_of_layers: float) -> int:
    """Bytes on one device: its share of the layers, and of embedding and output head."""
    tags = profile.tags
    listed = _listed_bytes(artifact_of(entry, profile), _WEIGHT_SUFFIXES)
    layer_bits, end_bits = bits_of(tags.precision), 16.0
    if tags.llm_engine == "mlx" and layer_bits < end_bits:
        layer_bits = round(layer_bits) + 0.5  # a scale and an offset for every 64 weights
    if tags.precision.lower() == "fp32" or tags.llm_engine in _SMALL_ENGINES:
        end_bits = layer_bits  # the formats of other engines leave embedding and output head in 16 bits
    ends = shape.embedding_parameters * end_bits / 8
    layers = max(entry.num_parameters - shape.embedding_parameters, shape.layer_parameters) * layer_bits / 8
    if listed:
        layers = max(listed - ends, 0)
    return int((layers * share_of_layers + ends) / tags.tp)


def _adapter_bytes(entry: ModelEntry, profile: Profile, shape: ModelShape) -> int:
    """Bytes of as many adapters as requests may use at once, of the largest rank and on all linear layers."""
    if not serves_adapters(entry, profile):
        return 0
    given = {**lora_flags(profile), **flags_of(profile)}
    defaults = LoRAOptions()
    count = int(given.get("max_loras") or defaults.max_loras)
    rank = int(given.get("max_lora_rank") or defaults.max_lora_rank)
    q_width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    widths = 2 * (shape.hidden_size + q_width) + 2 * (shape.hidden_size + kv_width)
    widths += 3 * (shape.hidden_size + shape.inner_size)
    return 2 * count * rank * widths * shape.num_layers


def _has_small_kv(flags: dict[str, Any]) -> bool:
    return str(flags.get("kv_cache_dtype", "auto")).startswith(("fp8", "int8"))


def _listed_bytes(artifact: Artifact | None, suffixes: tuple[str, ...] = ("",)) -> int:
    return 0 if artifact is None else sum(file.size or 0 for file in artifact.files if file.path.endswith(suffixes))
