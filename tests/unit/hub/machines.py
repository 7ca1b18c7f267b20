"""Machines and models for tests of choosing: the published machine files, and small models of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm_mxext.hub.hardware import Device, Hardware, Host
from vllm_mxext.hub.hardware_inspect import read_hardware
from vllm_mxext.hub.manifest.model import DeviceNeeds, EngineName, ModelEntry, Profile, Tags

GIB = 2**30
MACHINE_FILES = sorted((Path(__file__).parents[3] / "examples/hardware").glob("*.yaml"))

QWEN_8B = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 4096,
    "intermediate_size": 12_288, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "max_position_embeddings": 40_960, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN_SMALL = {
    **QWEN_8B, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
    "tie_word_embeddings": True,
}  # fmt: skip


def machine(file_name: str) -> Hardware:
    """Returns one of the published machines."""
    return read_hardware(next(file for file in MACHINE_FILES if file.stem == file_name))


def server(
    memory: int = 64 * GIB,
    *devices: Device,
    available: int | None = None,
    engines: tuple[EngineName, ...] = ("native", "vllm"),
) -> Hardware:
    """Returns a machine with so much memory."""
    host = Host(
        num_cores=8,
        isa=("avx2",),
        memory_bytes=memory,
        memory_available_bytes=memory if available is None else available,
    )
    return Hardware(
        "the machine", host, tuple(replace(device, index=index) for index, device in enumerate(devices)), engines
    )


def gpu(
    memory: int = 80 * GIB,
    available: int | None = None,
    name: str = "NVIDIA H100 80GB HBM3",
    arch: str = "sm_90",
    **fields: Any,
) -> Device:
    """Returns an NVIDIA device."""
    free = memory if available is None else available
    return Device(
        "nvidia", name, pci_id="10de:2330", arch=arch, memory_bytes=memory, memory_available_bytes=free, **fields
    )


def on_gpu(
    name: str = "gpu", *, tp: int = 1, precision: str = "bf16", needs: dict[str, Any] | None = None, **tags: Any
) -> Profile:
    """Returns a profile of vLLM on NVIDIA devices."""
    device = DeviceNeeds("gpu", **{"vendor": "nvidia", **(needs or {})})
    return Profile(name, tags=Tags("vllm", precision, tp, **tags), device=device)


def on_cpu(name: str = "cpu", **fields: Any) -> Profile:
    """Returns a profile of the native engine on the processor."""
    return Profile(name, **fields)


def model(*profiles: Profile, config: dict[str, Any] | None = None, **fields: Any) -> ModelEntry:
    """Returns a model with these profiles."""
    return ModelEntry("org/model", config=QWEN_8B if config is None else config, profiles=profiles, **fields)
