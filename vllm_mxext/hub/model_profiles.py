"""Profiles for a model that no manifest describes: what can run its files, on which devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_mxext.config.model_spec import SUPPORTED_ARCHITECTURES, parse_model_spec
from vllm_mxext.errors import ConfigError
from vllm_mxext.hub.manifest.model import Artifact, DeviceNeeds, EngineName, Profile, Tags, Vendor

_BF16_ARCH = (">=sm_80",)
_FP16_ARCH = (">=sm_70",)
_GGUF_VENDORS: tuple[Vendor, ...] = ("nvidia", "amd", "apple")
_PLAIN = frozenset(("bf16", "fp16", "fp32"))
_LARGE, _HUGE = 4 * 10**9, 40 * 10**9
"""Parameters from which several devices are of use, and from which eight are."""


def native_refusal(config: Mapping[str, Any]) -> str | None:
    """Returns why the native engine cannot run a model, as a sentence; None if it can."""
    names = config.get("architectures")
    if not isinstance(names, list) or not any(name in SUPPORTED_ARCHITECTURES for name in names):
        found = names[0] if isinstance(names, list) and names else "none that is named"
        return f"The native engine does not run its architecture, {str(found)[:100]}."
    try:
        parse_model_spec(config)
    except ConfigError as error:
        return f"The native engine cannot run it: {error}"
    except (TypeError, ValueError, AttributeError, ArithmeticError):  # a value of a type that nobody thought of
        return "The native engine cannot run it: its config.json is not what it should be."
    return None


def native_profiles(artifact: str, precision: str) -> Iterator[Profile]:
    """Yields profiles of the native engine, for a model that it can run.

    Args:
        artifact: name of its files.
        precision: of its weights; another one than a plain type means four bits.
    """

    def profile(device: str, kind: str, needs: DeviceNeeds, *, is_fallback: bool = False, **flags: str) -> Profile:
        return Profile(
            f"native-{device}-{kind}",
            tags=Tags("native", kind, feat_lora=True),
            artifact=artifact,
            device=needs,
            engine_args={"device": device, **flags},
            is_fallback=is_fallback,
        )

    yield profile("cpu", precision, DeviceNeeds())
    if precision not in _PLAIN:
        return
    yield profile("cpu", "int8", DeviceNeeds(), is_fallback=True, quantization="int8")
    arch = {"bf16": _BF16_ARCH, "fp16": _FP16_ARCH}.get(precision, ())
    yield profile("cuda", precision, DeviceNeeds("gpu", "nvidia", arch=arch))
    if precision == "bf16":
        needs = DeviceNeeds("gpu", "nvidia", arch=_FP16_ARCH)
        yield profile("cuda", "fp16", needs, is_fallback=True, dtype="float16")


def gpu_profiles(
    artifact: Artifact, precision: str, config: Mapping[str, Any], num_parameters: int
) -> Iterator[Profile]:
    """Yields profiles of vLLM and TensorRT-LLM on one device and several.

    Args:
        artifact: files of the model, in Hugging Face's layout.
        precision: of its weights.
        config: its `config.json`.
        num_parameters: of the model.
    """
    vendors: tuple[Vendor, ...] = ("nvidia", "amd", "metax")
    sizes = [size for size in _device_counts(num_parameters) if _divides(size, config)]
    for vendor in vendors:
        for size in sizes:
            yield _gpu_profile("vllm", vendor, artifact.name, precision, size)
    if artifact.format == "safetensors" and precision in ("bf16", "fp16", "fp8"):
        for size in sizes:
            yield _gpu_profile("tensorrt_llm", "nvidia", artifact.name, precision, size)


def llama_cpp_profiles(artifact: str, precision: str) -> Iterator[Profile]:
    """Yields profiles of llama.cpp for one GGUF artifact."""
    tags = Tags("llama.cpp", precision)
    yield Profile(f"llama.cpp-cpu-{precision}", tags=tags, artifact=artifact)
    for vendor in _GGUF_VENDORS:
        yield Profile(
            f"llama.cpp-{vendor}-{precision}", tags=tags, artifact=artifact, device=DeviceNeeds("gpu", vendor)
        )


def mlx_profile(artifact: str, precision: str) -> Profile:
    """Returns a profile of MLX."""
    return Profile(
        f"mlx-{precision}", tags=Tags("mlx", precision), artifact=artifact, device=DeviceNeeds("gpu", "apple")
    )


def _gpu_profile(engine: EngineName, vendor: Vendor, artifact: str, precision: str, size: int) -> Profile:
    words = [engine, "" if vendor == "nvidia" else vendor, precision, f"tp{size}" if size > 1 else ""]
    arch = {"bf16": _BF16_ARCH, "fp8": (">=sm_89",), "mxfp4": _BF16_ARCH}.get(precision, _FP16_ARCH)
    flag = "tensor-parallel-size" if engine == "vllm" else "tp_size"
    return Profile(
        "-".join(word for word in words if word),
        tags=Tags(
            engine, precision, size, profile="throughput" if engine == "vllm" else "latency", feat_lora=engine == "vllm"
        ),
        artifact=artifact,
        device=DeviceNeeds("gpu", vendor, size, arch=arch if vendor == "nvidia" else ()),
        engine_args={flag: size} if size > 1 else {},
    )


def _device_counts(num_parameters: int) -> tuple[int, ...]:
    if 0 < num_parameters < _LARGE:
        return (1,)
    return (1, 2, 4) if num_parameters < _HUGE else (1, 2, 4, 8)


def _divides(size: int, config: Mapping[str, Any]) -> bool:
    text_part = config.get("text_config")
    heads = (text_part if isinstance(text_part, Mapping) else config).get("num_attention_heads")
    return size == 1 or (isinstance(heads, int) and heads % size == 0)
