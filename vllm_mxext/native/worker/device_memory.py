"""How much memory the device has: the machine's or the container's on a CPU, the card's on CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory of one device in bytes.

    Attributes:
        total_bytes: installed, or the container's limit if that is less.
        available_bytes: not in use now; page cache counts as available.
    """

    total_bytes: int
    available_bytes: int


def device_memory(device: str) -> DeviceMemory:
    """Measures `cpu`, `cuda` or `cuda:N`."""
    if device == "cpu":
        return host_memory(_OWN_CGROUP, _CGROUP_ROOT)
    import torch  # noqa: PLC0415  (the CPU plan works without torch)

    available, total = torch.cuda.mem_get_info(torch.device(device))
    return DeviceMemory(total, available)


def host_memory(own_cgroup: Path, cgroup_root: Path) -> DeviceMemory:
    """Memory of this machine within the limits of the control groups this process is in.

    Args:
        own_cgroup: file listing the process's groups (`/proc/self/cgroup`).
        cgroup_root: where the groups are mounted.
    """
    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for folder in _memory_groups(own_cgroup, cgroup_root):
        limit = _read_int(folder / "memory.max") or _read_int(folder / "memory.limit_in_bytes")
        if limit is None or limit >= machine.total:
            continue
        used = _read_int(folder / "memory.current") or _read_int(folder / "memory.usage_in_bytes") or 0
        total = min(total, limit)
        available = min(available, max(limit - used + _reclaimable(folder), 0))
    return DeviceMemory(total, available)


def _memory_groups(own_cgroup: Path, root: Path) -> Iterator[Path]:
    """The process's memory groups, version 2 and 1, with all their parents; in a container the root is its own."""
    try:
        lines = own_cgroup.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = root / controllers
        folder = base / path.lstrip("/")
        while folder != base and base in folder.parents:
            yield folder
            folder = folder.parent
        yield base


def _reclaimable(folder: Path) -> int:
    """Page cache that the kernel gives back under pressure."""
    try:
        lines = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    values = dict(line.split(" ", 1) for line in lines if " " in line)
    return int(values.get("total_inactive_file", values.get("inactive_file", "0")))


def _read_int(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
