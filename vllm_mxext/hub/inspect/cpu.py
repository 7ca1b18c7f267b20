"""The machine around its devices: processor, instruction sets, memory and disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from vllm_mxext.config import machine
from vllm_mxext.hub.hardware import Host

_X86_FLAGS = {
    "avx": "avx",
    "avx2": "avx2",
    "f16c": "f16c",
    "fma": "fma",
    "avx_vnni": "avx_vnni",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_tile": "amx_tile",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "amx_fp16": "amx_fp16",
}
_AVX512_FLAGS = frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"})
"""What every processor with AVX-512 since 2017 has, and code for `avx512` takes for granted."""

_ARM_FLAGS = {
    "asimd": "neon",
    "asimdhp": "arm64_fp16",
    "asimddp": "arm64_dotprod",
    "bf16": "arm64_bf16",
    "i8mm": "arm64_i8mm",
    "sve": "arm64_sve",
    "sve2": "arm64_sve2",
    "sme": "arm64_sme",
}
_APPLE_KEYS = {
    "hw.optional.neon": "neon",
    "hw.optional.AdvSIMD": "neon",
    "hw.optional.arm.FEAT_FP16": "arm64_fp16",
    "hw.optional.arm.FEAT_DotProd": "arm64_dotprod",
    "hw.optional.arm.FEAT_BF16": "arm64_bf16",
    "hw.optional.arm.FEAT_I8MM": "arm64_i8mm",
    "hw.optional.arm.FEAT_SME": "arm64_sme",
    "hw.optional.avx1_0": "avx",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512",
}
_CPUINFO_BYTES = 64 * 1024
"""Enough for the first processor; a large server repeats the same lines for hundreds of them."""

SYSCTL_KEYS = (
    "hw.memsize", "hw.physicalcpu", "hw.logicalcpu", "machdep.cpu.brand_string", "iogpu.wired_limit_mb", *_APPLE_KEYS,
)  # fmt: skip


def linux_host(root: Path, arch: str, store_folder: Path | None) -> Host:
    """Reads what Linux tells in `proc` and `sys`."""
    info = read_cpuinfo(root)
    memory = machine.usable_memory(root)
    return Host(
        os="linux",
        machine=arch,
        cpu=info.get("model name", "") or _device_tree_model(root),
        num_cores=machine.usable_cores(root),
        num_threads=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        num_numa_nodes=max(1, len(list(root.glob("sys/devices/system/node/node[0-9]*")))),
        isa=instruction_sets(info),
        memory_bytes=memory.total_bytes,
        memory_available_bytes=memory.available_bytes,
        disk_available_bytes=free_disk(store_folder),
    )


def read_cpuinfo(root: Path) -> dict[str, str]:
    """Returns the first processor's lines of `proc/cpuinfo`; empty if there are none."""
    try:
        with (root / "proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            text = file.read(_CPUINFO_BYTES)
    except OSError:
        return {}
    first = text.split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def instruction_sets(info: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the instruction sets that lines of `proc/cpuinfo` name, in the words of a profile's `requires`."""
    flags = frozenset(info.get("flags", "").split())
    features = frozenset(info.get("Features", "").split())
    found = {name for flag, name in _X86_FLAGS.items() if flag in flags}
    found |= {name for flag, name in _ARM_FLAGS.items() if flag in features}
    if flags >= _AVX512_FLAGS:
        found.add("avx512")
    return tuple(sorted(found))


def apple_host(values: Mapping[str, str], arch: str, available_bytes: int, store_folder: Path | None) -> Host:
    """Makes a host of what `sysctl` says."""
    return Host(
        os="darwin",
        machine=arch,
        cpu=values.get("machdep.cpu.brand_string", ""),
        num_cores=_number(values, "hw.physicalcpu", 1),
        num_threads=_number(values, "hw.logicalcpu", 1),
        isa=tuple(sorted({name for key, name in _APPLE_KEYS.items() if values.get(key) == "1"})),
        memory_bytes=_number(values, "hw.memsize", 0),
        memory_available_bytes=available_bytes,
        disk_available_bytes=free_disk(store_folder),
    )


def parse_sysctl(output: str) -> dict[str, str]:
    """Returns the values that `sysctl` printed as `name: value`."""
    pairs = (line.partition(":") for line in output.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def free_disk(folder: Path | None) -> int | None:
    """Returns the free bytes where a folder is or would be; None if nobody can say."""
    if folder is None:
        return None
    absolute = folder.absolute()
    place = next((place for place in (absolute, *absolute.parents) if os.path.exists(place)), None)
    try:
        return None if place is None else shutil.disk_usage(place).free
    except OSError:
        return None


def _number(values: Mapping[str, str], name: str, default: int) -> int:
    text = values.get(name, "")
    return int(text) if text.isdigit() else default


def _device_tree_model(root: Path) -> str:
    """The board's name, which is all that many ARM machines say of themselves."""
    try:
        return (root / "sys/firmware/devicetree/base/model").read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""
