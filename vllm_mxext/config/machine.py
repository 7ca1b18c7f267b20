"""What this process may use of the machine: physical cores, memory, container limits included; the user's folders."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_SYSTEM_ROOT = Path("/")


def usable_cores(root: Path = _SYSTEM_ROOT, cpus: frozenset[int] | None = None) -> int:
    """Returns the physical cores this process may compute on, at least 1.

    Hyper-threads of one core count once, and a CPU quota of the control group rounds down.

    Args:
        root: where `sys`, `proc` are found (tests).
        cpus: logical CPUs of the process; by default its affinity.
    """
    if cpus is None:
        cpus = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    if cpus is None:
        return max(1, os.cpu_count() or 1)
    cores = {_core_of(root, cpu) for cpu in cpus}
    quota = _cpu_quota(root)
    count = len(cores) if quota is None else min(len(cores), math.floor(quota))
    return max(1, count)


@dataclass(frozen=True, slots=True)
class Memory:
    """Main memory in bytes.

    Attributes:
        total_bytes: the machine's, or the control group's limit if that is less.
        available_bytes: of these, not in use now; what is cached from files counts as available.
    """

    total_bytes: int
    available_bytes: int


def usable_memory(root: Path = _SYSTEM_ROOT) -> Memory:
    """Returns the main memory this process may use."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = _entries(root / "proc/meminfo").get("MemAvailable:", total // 1024) * 1024
    for folder in _cgroup_folders(root, "memory"):
        limit = _number(folder, "memory.max", "memory.limit_in_bytes")
        if limit is not None:
            used = _number(folder, "memory.current", "memory.usage_in_bytes") or 0
            stat = _entries(folder / "memory.stat")
            cached = stat.get("total_inactive_file", stat.get("inactive_file", 0))
            total, available = min(total, limit), min(available, max(0, limit - used + cached))
    return Memory(total, available)


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Returns the folder for files that only save time (XDG base directory specification); None without a home."""
    return _user_folder(environ.get("XDG_CACHE_HOME", ""), ".cache")


def config_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Returns the folder for what the user has set up; None without a home."""
    return _user_folder(environ.get("XDG_CONFIG_HOME", ""), ".config")


def state_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Returns the folder for what runs leave behind, such as logs and histories; None without a home."""
    return _user_folder(environ.get("XDG_STATE_HOME", ""), ".local/state")


def _user_folder(base: str, otherwise: str) -> Path | None:
    if not os.path.isabs(base):  # the specification says to ignore these
        base = os.path.join(os.path.expanduser("~"), otherwise)
    return Path(base) / "vllm_mxext" if os.path.isabs(base) else None


def _core_of(root: Path, cpu: int) -> str:
    topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    return _read(topology / "thread_siblings_list") or str(cpu)


def _cpu_quota(root: Path) -> float | None:
    """CPUs' worth of time per second, the smallest limit on the way up the control groups."""
    quotas = []
    for folder in _cgroup_folders(root, "cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if not period:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """Control group folders of this process, from its own up to the root; version 2 or 1."""
    base = root / "sys/fs/cgroup"
    folders = [base, base / controller]
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and controller not in controllers.split(","):
            continue
        own = (base / controller if controllers else base) / path.lstrip("/")
        folders += [own, *(parent for parent in own.parents if base in parent.parents)]
    return folders


def _number(folder: Path, *names: str) -> int | None:
    """Returns the number in the first of the files that holds one."""
    return next((int(text) for text in (_read(folder / name) for name in names) if text.isdigit()), None)


def _entries(path: Path) -> dict[str, int]:
    """Returns the numbers of a file with a name and a number per line."""
    words = [line.split() for line in _read(path).splitlines()]
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdigit()}


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
