"""MetaX's devices, from the table that `mx-smi` prints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from vllm_mxext.hub.hardware import Device
from vllm_mxext.hub.inspect.programs import Runner
from vllm_mxext.hub.inspect.visible import visible_devices

_FIRST_LINE = re.compile(
    r"\|\s*(?P<index>\d+)\s+(?P<name>\S.*?)(?:\s+(?:On|Off))?\s*\|(?:[^|]*\|)?"
    r"\s*(?P<bus>[0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-9a-fA-F])\s*\|"
)
_MEMORY = re.compile(r"(\d+)\s*/\s*(\d+)\s*MiB")
_DRIVER = re.compile(r"Kernel Mode Driver Version:\s*(\S+)")
_MIB = 2**20

_ARCHS = {"C500": "xcore1000", "C550": "xcore1000"}
"""Names of devices -> what MetaX's compiler calls them (`mxcc --offload-arch`)."""


def inspect_metax(environ: Mapping[str, str], root: Path, run: Runner) -> tuple[Device, ...]:
    """Returns the devices that a process may use: `MACA_VISIBLE_DEVICES`, or `CUDA_VISIBLE_DEVICES` in its place."""
    output = run(["mx-smi"])
    if output is None:
        return ()
    variable = environ.get("MACA_VISIBLE_DEVICES", environ.get("CUDA_VISIBLE_DEVICES"))
    return visible_devices([(device,) for device in parse_mx_smi(output, root)], variable)


def parse_mx_smi(output: str, root: Path) -> tuple[Device, ...]:
    """Reads the table: two lines per device, with name and bus id in the first and memory in the second.

    Args:
        output: as printed by versions 2.1 to 2.3.
        root: where `sys` is found, for the PCI ids of the devices.
    """
    match = _DRIVER.search(output)
    driver = match[1] if match else ""
    devices: list[Device] = []
    first: re.Match[str] | None = None
    for line in output.splitlines():
        memory = _MEMORY.search(line)
        if first is not None and memory is not None:
            devices.append(_device(first, int(memory[1]), int(memory[2]), driver, root))
            first = None
        else:
            first = _FIRST_LINE.search(line) or first
    return tuple(devices)


def _device(line: re.Match[str], used_mib: int, total_mib: int, driver: str, root: Path) -> Device:
    model = line["name"].removeprefix("MetaX").removeprefix("MX").strip()
    return Device(
        vendor="metax",
        name=f"MetaX {model}",
        index=int(line["index"]),
        pci_id=_pci_id(root, line["bus"].lower()),
        arch=_ARCHS.get(model, ""),
        memory_bytes=total_mib * _MIB,
        memory_available_bytes=max(0, total_mib - used_mib) * _MIB,
        driver=driver,
    )


def _pci_id(root: Path, bus: str) -> str:
    folder = root / "sys/bus/pci/devices" / bus
    try:
        vendor, device = ((folder / name).read_text().strip().removeprefix("0x") for name in ("vendor", "device"))
    except OSError:
        return ""
    return f"{vendor}:{device}"
