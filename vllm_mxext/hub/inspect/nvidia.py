"""NVIDIA's devices, through NVML: whole boards and MIG slices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vllm_mxext.hub.hardware import Device, Host
from vllm_mxext.hub.inspect.visible import visible_devices

_DRIVER_PLACES = ("dev/nvidiactl", "dev/dxg", "proc/driver/nvidia/version")
"""One of these is there wherever NVML can work (`dxg` under Windows' Linux); without them NVML is not even imported."""


def inspect_nvidia(
    environ: Mapping[str, str], root: Path, host: Host, nvml: Any = None
) -> tuple[tuple[Device, ...], tuple[str, ...]]:
    """Returns the devices that a process may use, and notes about what could not be found out.

    Args:
        environ: for `CUDA_VISIBLE_DEVICES`, and `NVIDIA_VISIBLE_DEVICES` as container runtimes set it.
        root: where `dev` and `proc` are found.
        host: the machine, whose memory devices without their own share.
        nvml: module `pynvml` or a stand-in for it; imported by default.
    """
    if environ.get("NVIDIA_VISIBLE_DEVICES") in ("void", "none"):
        return (), ()
    if nvml is None:
        if not any((root / place).exists() for place in _DRIVER_PLACES):
            return (), ()
        import pynvml  # noqa: PLC0415 - only machines with a driver pay for it

        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return (), (f"There is an NVIDIA driver, but NVML cannot be used: {error}.",)
    try:
        return _read_all(nvml, environ, host)
    finally:
        nvml.nvmlShutdown()


def _read_all(nvml: Any, environ: Mapping[str, str], host: Host) -> tuple[tuple[Device, ...], tuple[str, ...]]:
    notes: list[str] = []
    driver = _text(_ask(nvml, nvml.nvmlSystemGetDriverVersion, default=""))
    boards = [_try_board(nvml, index, driver, host, notes) for index in range(nvml.nvmlDeviceGetCount())]
    variable = environ.get("CUDA_VISIBLE_DEVICES")
    if variable is not None and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID" and _differ(boards):
        notes.append(
            "CUDA_VISIBLE_DEVICES may count the unequal devices of this machine in another order than NVML; set "
            "CUDA_DEVICE_ORDER=PCI_BUS_ID."
        )
    return visible_devices(boards, variable), tuple(notes)


def _try_board(nvml: Any, index: int, driver: str, host: Host, notes: list[str]) -> list[Device]:
    """Reads a board; one that cannot be asked keeps its place, so that the indexes of the others are right."""
    try:
        return _read_board(nvml, index, driver, host)
    except nvml.NVMLError as error:
        notes.append(f"NVIDIA device {index} cannot be asked: {error}.")
        return []


def _read_board(nvml: Any, index: int, driver: str, host: Host) -> list[Device]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    whole = _read_device(nvml, handle, index, driver, host)
    mode = _ask(nvml, nvml.nvmlDeviceGetMigMode, handle, default=(0, 0))
    if not mode[0]:
        return [whole]
    slices = []
    for number in range(_ask(nvml, nvml.nvmlDeviceGetMaxMigDeviceCount, handle, default=0)):
        piece = _ask(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number, default=None)
        if piece is not None:
            slices.append(_read_slice(nvml, piece, whole))
    return slices


def _read_device(nvml: Any, handle: Any, index: int, driver: str, host: Host) -> Device:
    memory = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle, default=None)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    pci = _ask(nvml, nvml.nvmlDeviceGetPciInfo, handle, default=None)
    number = 0 if pci is None else int(pci.pciDeviceId)
    return Device(
        vendor="nvidia",
        name=_text(nvml.nvmlDeviceGetName(handle)),
        index=index,
        uuid=_text(_ask(nvml, nvml.nvmlDeviceGetUUID, handle, default="")),
        pci_id=f"{number & 0xFFFF:04x}:{number >> 16:04x}" if number else "",
        arch=f"sm_{major}{minor}",
        memory_bytes=host.memory_bytes if memory is None else int(memory.total),
        memory_available_bytes=host.memory_available_bytes if memory is None else int(memory.free),
        driver=driver,
        shares_host_memory=memory is None,  # of GB10 and Jetson, NVML knows no memory of their own
    )


def _read_slice(nvml: Any, handle: Any, whole: Device) -> Device:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return Device(
        vendor="nvidia",
        name=_text(nvml.nvmlDeviceGetName(handle)),
        index=whole.index,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        pci_id=whole.pci_id,
        arch=whole.arch,
        memory_bytes=int(memory.total),
        memory_available_bytes=int(memory.free),
        is_mig=True,
        driver=whole.driver,
    )


def _ask(nvml: Any, function: Callable[..., Any], *arguments: Any, default: Any) -> Any:
    """Calls NVML about something that not every device or driver knows."""
    try:
        return function(*arguments)
    except nvml.NVMLError:
        return default


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _differ(boards: list[list[Device]]) -> bool:
    return len({device.name for board in boards for device in board}) > 1
