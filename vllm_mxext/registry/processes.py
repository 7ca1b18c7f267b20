"""Processes that outlive the command that started them: identity despite reused pids, signals, stopping, memory."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_mxext.registry.errors import RegistryError

if TYPE_CHECKING:
    import psutil

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STAT_OF_US = Path("/proc/self/stat")
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Identity:
    """Identifies one process, among all that ever have the same pid.

    Attributes:
        pid: its number, which the system may reuse later.
        start: when it started: on Linux in clock ticks since boot, unaffected by setting the clock; else in seconds.
        boot: which boot of the machine it belongs to.
    """

    pid: int
    start: float
    boot: str

    def is_alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        return identify(self.pid) == self


def identify(pid: int) -> Identity | None:
    """Returns the process that has a pid now; None if there is none, or it is a zombie."""
    start = _start(pid)
    return None if start is None else Identity(pid, start, boot_id())


def boot_id() -> str:
    """Returns a text that changes with every boot."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        import psutil  # noqa: PLC0415

        return str(int(psutil.boot_time()))


def _start(pid: int) -> float | None:
    if _STAT_OF_US.exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        facts = stat.rpartition(")")[2].split()  # the name in parentheses may hold anything
        return None if facts[0] in "ZX" and not _has_threads(pid) else float(facts[19])
    import psutil  # noqa: PLC0415

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def _has_threads(pid: int) -> bool:
    """Whether threads of a process outlive its main thread; its port is not free until the last one has ended."""
    try:
        return len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False


def send(identity: Identity, number: signal.Signals) -> bool:
    """Sends a signal to exactly this process, never to a later one with the same pid; returns False if it has ended.

    Raises:
        RegistryError: it belongs to another user.
    """
    descriptor = _pidfd(identity.pid)
    try:
        if not identity.is_alive():  # checked after opening, so that the descriptor is of the right process
            return False
        if descriptor is None:
            os.kill(identity.pid, number)
        else:
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        raise RegistryError(
            f"Process {identity.pid} belongs to another user and was not ended; end it as that user."
        ) from None
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return True


def _pidfd(pid: int) -> int | None:
    """Returns a descriptor of the process that has this pid now (pidfd); None where the system has none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # not on Linux, forbidden in a container, or the process has ended
        return None


def end(identity: Identity, *, timeout_s: float) -> bool:
    """Asks a process to end (SIGTERM); kills it and its children if it does not.

    Args:
        identity: the process.
        timeout_s: how long it may take to finish its work.

    Returns:
        Whether it ended without being killed.
    """
    children = _children(identity)
    send(identity, signal.SIGTERM)
    is_gentle = wait_for_end(identity, timeout_s)
    if not is_gentle:
        children += _children(identity)
        send(identity, signal.SIGKILL)
        wait_for_end(identity, 10.0)
        _kill(children)
    return is_gentle


def _kill(children: list[psutil.Process]) -> None:
    """Kills the children that a killed process could not end itself; psutil detects reused pids."""
    import psutil  # noqa: PLC0415

    for child in children:
        with contextlib.suppress(psutil.Error):
            child.kill()


def wait_for_end(identity: Identity, timeout_s: float) -> bool:
    """Returns whether a process ended in time."""
    deadline = time.monotonic() + timeout_s
    while identity.is_alive():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def memory_bytes(identity: Identity) -> int | None:
    """Returns the memory of a process and its children, with shared pages split (PSS); None if it has ended."""
    import psutil  # noqa: PLC0415 - slow to import, and not every command asks

    children = _children(identity)
    try:
        total = _memory_of(psutil.Process(identity.pid))
    except psutil.Error:
        return None
    for child in children:
        with contextlib.suppress(psutil.Error):
            total += _memory_of(child)
    return total


def _memory_of(process: psutil.Process) -> int:
    import psutil  # noqa: PLC0415

    with contextlib.suppress(psutil.AccessDenied):
        info = process.memory_full_info()
        return int(getattr(info, "pss", info.rss))
    return int(process.memory_info().rss)


def _children(identity: Identity) -> list[psutil.Process]:
    import psutil  # noqa: PLC0415

    try:
        return psutil.Process(identity.pid).children(recursive=True) if identity.is_alive() else []
    except psutil.Error:
        return []
