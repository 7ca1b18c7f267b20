"""What is left of a list of devices after a variable like `CUDA_VISIBLE_DEVICES`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vllm_mxext.hub.hardware import Device


def visible_devices(boards: Sequence[Sequence[Device]], variable: str | None) -> tuple[Device, ...]:
    """Returns the devices that a process sees, in the order that it sees them.

    As CUDA has it (CUDA programming guide, "Environment variables"): entries are indexes, or beginnings of UUIDs that
    fit one device; the first entry that fits none ends the list; an entry that comes twice leaves nothing. The index of
    a board that is divided stands for its first slice. HIP and MACA read theirs in the same way.

    Args:
        boards: per board, the device, or the slices that it is divided into.
        variable: value of the variable; None if it is not set.
    """
    if variable is None:
        return tuple(device for board in boards for device in board)
    found: list[Device] = []
    for entry in (word.strip() for word in variable.split(",")):
        device = _device_of(boards, entry)
        if device is None:
            break
        if device in found:
            return ()
        found.append(device)
    return tuple(found)


def _device_of(boards: Sequence[Sequence[Device]], entry: str) -> Device | None:
    if entry.isdigit():
        board = boards[int(entry)] if int(entry) < len(boards) else ()
        return board[0] if board else None
    devices = [device for board in boards for device in board]
    fitting = [device for device in devices if entry and device.uuid.lower().startswith(entry.lower())]
    return fitting[0] if len(fitting) == 1 else None


def numbered(devices: Sequence[Device]) -> tuple[Device, ...]:
    """Returns the devices with the indexes that a variable of this level would give them."""
    return tuple(replace(device, index=index) for index, device in enumerate(devices))
