"""`Hardware`: what a machine is made of, as plain data that a YAML file can give as well as the machine itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm_mxext.hub.manifest.model import EngineName, Vendor


@dataclass(frozen=True, slots=True)
class Host:
    """The machine around its devices.

    Attributes:
        os: `linux`, `darwin` or `windows`.
        machine: `x86_64`, `aarch64` or `arm64`.
        cpu: model name of the processor.
        num_cores: physical cores that this process may use, quotas of its control group included.
        num_threads: logical ones.
        num_numa_nodes: memory nodes.
        isa: instruction sets, as in a profile's `requires`.
        memory_bytes: main memory, or the control group's limit if that is less.
        memory_available_bytes: of these, not in use now.
        disk_available_bytes: free where models are stored; None if not known.
    """

    os: str = "linux"
    machine: str = "x86_64"
    cpu: str = ""
    num_cores: int = 1
    num_threads: int = 1
    num_numa_nodes: int = 1
    isa: tuple[str, ...] = ()
    memory_bytes: int = 0
    memory_available_bytes: int = 0
    disk_available_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """An accelerator that this process may use (`CUDA_VISIBLE_DEVICES` and its like obeyed).

    Attributes:
        vendor: who made it.
        name: for example `NVIDIA H100 80GB HBM3`.
        index: as the vendor's tools count.
        uuid: of device or MIG instance; empty if not known.
        pci_id: `vendor:device` in hexadecimal, such as `10de:2330`; empty if not known.
        arch: `sm_90`, `gfx942`, `xcore1000`, `apple9`; empty if not known.
        memory_bytes: its memory; of an Apple device, what it may use of the main memory.
        memory_available_bytes: of these, not in use now.
        is_mig: a slice of a device.
        driver: version of the driver.
        shares_host_memory: its memory is the main memory.
    """

    vendor: Vendor
    name: str
    index: int = 0
    uuid: str = ""
    pci_id: str = ""
    arch: str = ""
    memory_bytes: int = 0
    memory_available_bytes: int = 0
    is_mig: bool = False
    driver: str = ""
    shares_host_memory: bool = False


@dataclass(frozen=True, slots=True)
class Hardware:
    """One machine.

    Attributes:
        name: for people: a host name never, but `this machine`, or the name in a hardware file.
        host: the machine around its devices.
        devices: accelerators; empty on a CPU machine.
        engines: engines that this installation can start.
        notes: what could not be found out and why, a sentence each.
    """

    name: str
    host: Host = field(default_factory=Host)
    devices: tuple[Device, ...] = ()
    engines: tuple[EngineName, ...] = ("native",)
    notes: tuple[str, ...] = ()
