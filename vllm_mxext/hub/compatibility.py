"""Whether a profile and a machine are made for each other at all, memory aside: engine, devices, instruction sets."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vllm_mxext.config.memory_plan import format_bytes
from vllm_mxext.hub.hardware import Device, Hardware
from vllm_mxext.hub.manifest.model import DeviceNeeds, Profile, Vendor
from vllm_mxext.hub.model_shape import ModelShape

VENDOR_NAMES: dict[Vendor, str] = {"nvidia": "NVIDIA", "amd": "AMD", "metax": "MetaX", "apple": "Apple"}

_NOMINAL_SHARE = 0.93
"""A card that is sold with 48 GiB shows 45: error correction and driver keep up to 7%. Machines keep some, too."""

_LEAST_SM = {"bf16": 80, "fp8": 80}
"""Precision -> NVIDIA's compute capability below which the engines refuse it (vLLM documentation, "Quantization")."""

_ARCH = re.compile(r"(?P<family>[a-z_]+?)(?P<number>[0-9a-f]+)$")


def obstacles(profile: Profile, hardware: Hardware, shape: ModelShape | None) -> list[str]:
    """Returns why the profile can never run on this machine, a sentence each; none if it could."""
    found = []
    tags = profile.tags
    if tags.llm_engine not in hardware.engines:
        here = ", ".join(hardware.engines) or "none"
        found.append(f"It needs the engine {tags.llm_engine}; {hardware.name} can start: {here}.")
    missing = [name for name in profile.host.isa if name not in hardware.host.isa]
    if missing:
        found.append(f"It needs the instruction set{'s' * (len(missing) > 1)} {', '.join(missing)} of the processor.")
    num_devices = devices_needed(profile)
    if tags.llm_engine == "native" and num_devices > 1:
        found.append(f"The native engine runs on one device in this version, and the profile wants {num_devices}.")
    if shape is not None and shape.num_heads % tags.tp:
        found.append(f"The model's {shape.num_heads} attention heads cannot be divided among {tags.tp} devices.")
    if profile.device.kind == "gpu":
        found += _device_obstacles(profile, hardware)
    return found


def devices_needed(profile: Profile) -> int:
    """Returns how many devices the profile runs on; 1 on a CPU."""
    return max(profile.device.count, profile.tags.tp * profile.tags.pp) if profile.device.kind == "gpu" else 1


def device_groups(profile: Profile, hardware: Hardware) -> list[tuple[int, ...]]:
    """Returns positions of enough equal devices that the profile is made for, one tuple for each kind of them."""
    kinds: dict[tuple[object, ...], list[int]] = {}
    for position in _suitable(profile, hardware.devices):
        device = hardware.devices[position]
        kind = (device.vendor, device.name, device.arch, device.memory_bytes)
        kinds.setdefault(kind, []).append(position)
    return [tuple(positions) for positions in kinds.values() if len(positions) >= devices_needed(profile)]


def shortage(needed: int, there: int, what: str) -> str | None:
    """Returns the sentence that `what` is too small, nominal sizes allowed for; None if it is large enough."""
    if there >= needed * _NOMINAL_SHARE:
        return None
    return f"It is meant for {format_bytes(needed)} of {what}, and there are {format_bytes(there)}."


def is_made_for(needs: DeviceNeeds, device: Device) -> bool:
    """Whether the profile names this very device."""
    return any(_is_named(device, name) for name in needs.ids)


def has_arch(device: Device, wanted: str) -> bool:
    """Whether a device is of an architecture such as `sm_90`, or `>=sm_80`."""
    if not wanted.startswith(">="):
        return device.arch == wanted
    here, least = _ARCH.match(device.arch), _ARCH.match(wanted.removeprefix(">=").strip())
    if here is None or least is None or here["family"] != least["family"]:
        return False
    base = 16 if here["family"] == "gfx" else 10
    return int(here["number"], base) >= int(least["number"], base)


def _device_obstacles(profile: Profile, hardware: Hardware) -> list[str]:
    needs, num_devices = profile.device, devices_needed(profile)
    wanted = _description(needs, num_devices)
    if not hardware.devices:
        return [f"It needs {wanted}, and {hardware.name} has no GPU."]
    if device_groups(profile, hardware):
        return []
    suitable = _suitable(profile, hardware.devices)
    names = ", ".join(dict.fromkeys(device.name for device in hardware.devices))
    precision = profile.tags.precision
    if not suitable and _suitable(profile, hardware.devices, ignores_precision=True):
        return [f"Its precision {precision} needs sm_{_LEAST_SM[precision]} or later, and {hardware.name} has {names}."]
    if num_devices > 1 and any(device.is_mig for device in hardware.devices):
        return [f"It needs {wanted}, and slices of a GPU (MIG) cannot work together."]
    if suitable:
        return [f"It needs {wanted}, and {hardware.name} has {len(suitable)} such: {names}."]
    return [f"It needs {wanted}, and {hardware.name} has: {names}."]


def _suitable(profile: Profile, devices: Sequence[Device], *, ignores_precision: bool = False) -> list[int]:
    """Returns the positions of devices that the profile is made for, memory aside."""
    needs, num_devices = profile.device, devices_needed(profile)
    return [
        position
        for position, device in enumerate(devices)
        if needs.vendor in (None, device.vendor)
        and (not needs.arch or any(has_arch(device, arch) for arch in needs.arch))
        and (not needs.ids or is_made_for(needs, device))
        and not (device.is_mig and num_devices > 1)
        and (ignores_precision or _knows_precision(device, profile.tags.precision))
    ]


def _knows_precision(device: Device, precision: str) -> bool:
    least = _LEAST_SM.get(precision)
    return least is None or device.vendor != "nvidia" or not device.arch or has_arch(device, f">=sm_{least}")


def _is_named(device: Device, name: str) -> bool:
    if name.lower() == device.pci_id.lower():
        return True
    return re.search(rf"(?<![a-z0-9]){re.escape(name.lower())}(?![a-z0-9])", device.name.lower()) is not None


def _description(needs: DeviceNeeds, num_devices: int) -> str:
    vendor = f"{VENDOR_NAMES[needs.vendor]} " if needs.vendor else ""
    text = f"{num_devices} equal {vendor}GPUs" if num_devices > 1 else f"{_article(vendor)} {vendor}GPU"
    if needs.arch:
        text += f" of {' or '.join(arch.replace('>=', 'at least ') for arch in needs.arch)}"
    return text + (f" named {' or '.join(needs.ids)}" if needs.ids else "")


def _article(vendor: str) -> str:
    return "an" if vendor[:1] in ("N", "A") else "a"
