"""Apple's graphics processors: a share of the main memory of a Mac."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vllm_mxext.hub.hardware import Device, Host

_GIB = 2**30
_LARGE_MEMORY_BYTES = 36 * _GIB
"""From here on Metal recommends (`recommendedMaxWorkingSetSize`) three quarters of the memory, below two thirds."""

_FIRST_FAMILY = {"1": 7, "2": 8, "3": 9, "4": 9, "5": 10}
"""Generation of the M processors -> Metal's GPU family (Metal feature set tables)."""


def apple_device(values: Mapping[str, str], host: Host) -> Device | None:
    """Returns the graphics processor of a Mac with an M processor; None for another Mac.

    Args:
        values: what `sysctl` says; `iogpu.wired_limit_mb` is the user's own limit of what the GPU may have.
        host: the machine, whose memory it shares.
    """
    match = re.match(r"Apple M(\d)", host.cpu)
    if match is None:
        return None
    share = host.memory_bytes * 3 // 4 if host.memory_bytes >= _LARGE_MEMORY_BYTES else host.memory_bytes * 2 // 3
    limit = values.get("iogpu.wired_limit_mb", "0")
    if limit.isdigit() and int(limit) > 0:
        share = min(int(limit) * 2**20, host.memory_bytes)
    return Device(
        vendor="apple",
        name=host.cpu,
        arch=f"apple{_FIRST_FAMILY[match[1]]}" if match[1] in _FIRST_FAMILY else "",
        memory_bytes=share,
        memory_available_bytes=min(share, host.memory_available_bytes),
        shares_host_memory=True,
    )
