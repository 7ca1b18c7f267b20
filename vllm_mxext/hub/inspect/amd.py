"""AMD's devices, from the files of the kernel's drivers: `kfd` says what they are, `drm` what memory they have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vllm_mxext.hub.hardware import Device
from vllm_mxext.hub.inspect.visible import numbered, visible_devices

_NODES = "sys/class/kfd/kfd/topology/nodes"


def inspect_amd(environ: Mapping[str, str], root: Path) -> tuple[Device, ...]:
    """Returns the devices that a process may use, in HIP's order.

    `ROCR_VISIBLE_DEVICES` comes first, and `HIP_VISIBLE_DEVICES`, or `CUDA_VISIBLE_DEVICES` in its place, chooses among
    what that leaves.
    """
    folders = [folder for folder in (root / _NODES).glob("*") if folder.name.isdigit()]
    driver = _read(root / "sys/module/amdgpu/version")
    found = (_read_node(root, folder, driver) for folder in sorted(folders, key=lambda folder: int(folder.name)))
    devices = numbered([device for device in found if device is not None])
    by_runtime = visible_devices([(device,) for device in devices], environ.get("ROCR_VISIBLE_DEVICES"))
    variable = environ.get("HIP_VISIBLE_DEVICES", environ.get("CUDA_VISIBLE_DEVICES"))
    return visible_devices([(device,) for device in by_runtime], variable)


def gfx_name(version: int) -> str:
    """Returns the architecture's name for `gfx_target_version`: 90402 is gfx942, 90010 is gfx90a."""
    return f"gfx{version // 10_000}{version // 100 % 100:x}{version % 100:x}"


def _read_node(root: Path, folder: Path, driver: str) -> Device | None:
    lines = (line.split() for line in _read(folder / "properties").splitlines())
    values = {words[0]: int(words[1]) for words in lines if len(words) == 2 and words[1].isdigit()}
    version = values.get("gfx_target_version", 0)
    if not version:  # a processor, or a device that this control group may not use
        return None
    device = root / f"sys/class/drm/renderD{values.get('drm_render_minor', 0)}/device"
    total, used = (_number(device / f"mem_info_vram_{name}") for name in ("total", "used"))
    return Device(
        vendor="amd",
        name=_read(device / "product_name") or f"AMD {gfx_name(version)}",
        uuid=f"GPU-{values['unique_id']:016x}" if values.get("unique_id") else "",
        pci_id=f"{values.get('vendor_id', 0):04x}:{values.get('device_id', 0):04x}",
        arch=gfx_name(version),
        memory_bytes=total,
        memory_available_bytes=max(0, total - used),
        driver=driver,
    )


def _number(path: Path) -> int:
    text = _read(path)
    return int(text) if text.isdigit() else 0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
