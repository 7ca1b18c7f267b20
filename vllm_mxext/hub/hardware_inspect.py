"""What this machine is made of, or another one that a file describes: `inspect_hardware()` and `read_hardware()`.

`python -m vllm_mxext.hub.hardware_inspect [--json] [--hardware FILE]` prints it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vllm_mxext.config.memory_plan import format_bytes
from vllm_mxext.errors import ConfigError
from vllm_mxext.hub.hardware import Device, Hardware, Host
from vllm_mxext.hub.inspect import amd, apple, cpu, metax, nvidia
from vllm_mxext.hub.inspect.programs import run_program

if TYPE_CHECKING:
    from vllm_mxext.hub.manifest.model import EngineName

THIS_MACHINE = "this machine"

_ROOT = Path("/")
_Found = TypeVar("_Found")


def inspect_hardware(
    store_folder: Path | None = None, *, environ: Mapping[str, str] | None = None, root: Path = _ROOT
) -> Hardware:
    """Looks at this machine; what cannot be found out becomes a note.

    Args:
        store_folder: where models are stored, for its free space.
        environ: for variables like `CUDA_VISIBLE_DEVICES`; by default those of this process.
        root: where `proc`, `sys` and `dev` are found.
    """
    environ = os.environ if environ is None else environ
    notes: list[str] = []
    if platform.system() == "Darwin":
        mac = _guarded("This Mac", lambda: _inspect_mac(store_folder), notes)
        host, devices = mac or (Host(os="darwin"), ())
        return Hardware(THIS_MACHINE, host, devices, engines_here(), tuple(notes))
    arch = platform.machine()
    host = _guarded("The processor", lambda: cpu.linux_host(root, arch, store_folder), notes) or Host(machine=arch)
    nvidia_devices, remarks = _guarded(
        "NVIDIA devices", lambda: nvidia.inspect_nvidia(environ, root, host), notes
    ) or ((), ())  # fmt: skip
    devices = (
        *nvidia_devices,
        *(_guarded("AMD devices", lambda: amd.inspect_amd(environ, root), notes) or ()),
        *(_guarded("MetaX devices", lambda: metax.inspect_metax(environ, root, run_program), notes) or ()),
    )
    return Hardware(THIS_MACHINE, host, devices, engines_here(), (*notes, *remarks))


def engines_here() -> tuple[EngineName, ...]:
    """Returns the engines that this installation can start: in this version its own."""
    return ("native",)


def read_hardware(file: Path) -> Hardware:
    """Reads a file that describes a machine (examples/hardware).

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong.
    """
    from vllm_mxext.hub.inspect.machine_file import read_machine_file  # noqa: PLC0415 - only planning pays for it

    return read_machine_file(file)


def describe(hardware: Hardware) -> str:
    """Returns the machine as a few lines for people."""
    host = hardware.host
    disk = host.disk_available_bytes
    rows = [
        ("machine", f"{hardware.name}: {host.os} {host.machine}"),
        ("cpu", f"{host.cpu or 'unknown'}: {host.num_cores} cores, {host.num_threads} threads, "
                f"{host.num_numa_nodes} memory node{'s' if host.num_numa_nodes > 1 else ''}"),
        ("isa", " ".join(host.isa) or "none known"),
        ("memory", f"{format_bytes(host.memory_bytes)}, {format_bytes(host.memory_available_bytes)} available"),
        *([("disk", f"{format_bytes(disk)} free for models")] if disk is not None else ()),
        *((f"device {position}", _device_line(device)) for position, device in enumerate(hardware.devices)),
        ("engines", " ".join(hardware.engines)),
        *(("note", note) for note in hardware.notes),
    ]  # fmt: skip
    if not hardware.devices:
        rows.insert(-1 - len(hardware.notes), ("devices", "none besides the processor"))
    return "\n".join(f"{name:<10}{text}" for name, text in rows)


def as_dict(hardware: Hardware) -> dict[str, Any]:
    """Returns the machine as values for JSON."""
    return asdict(hardware)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints this machine, or the one of a file."""
    parser = argparse.ArgumentParser(
        prog="python -m vllm_mxext.hub.hardware_inspect", description="What this machine is made of."
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--hardware", type=Path, metavar="FILE", help="the machine of this file instead")
    arguments = parser.parse_args(argv)
    try:
        hardware = inspect_hardware() if arguments.hardware is None else read_hardware(arguments.hardware)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    text = json.dumps(as_dict(hardware), indent=2) if arguments.json else describe(hardware)
    sys.stdout.write(f"{text}\n")
    return 0


def _inspect_mac(store_folder: Path | None) -> tuple[Host, tuple[Device, ...]]:
    import psutil  # noqa: PLC0415 - Linux tells the same without it

    values = cpu.parse_sysctl(run_program(["sysctl", *cpu.SYSCTL_KEYS]) or "")
    host = cpu.apple_host(values, platform.machine(), psutil.virtual_memory().available, store_folder)
    device = apple.apple_device(values, host)
    return host, () if device is None else (device,)


def _guarded(what: str, look: Callable[[], _Found], notes: list[str]) -> _Found | None:
    """Looks at one part; whatever drivers and programs do wrong must not keep a server from starting."""
    try:
        return look()
    except Exception as error:  # whatever it is, it is told
        notes.append(f"{what} could not be looked at ({type(error).__name__}: {error}); it is left out.")
        return None


def _device_line(device: Device) -> str:
    parts = [device.name, device.arch, f"{format_bytes(device.memory_bytes)}"]
    parts.append(f"{format_bytes(device.memory_available_bytes)} available")
    if device.is_mig:
        parts.append("a MIG slice")
    if device.shares_host_memory:
        parts.append("of the main memory")
    if device.driver:
        parts.append(f"driver {device.driver}")
    return ", ".join(part for part in parts if part)


if __name__ == "__main__":
    sys.exit(main())
