"""Machines described in YAML: the schema, and `Hardware` made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from vllm_mxext.config.sources import did_you_mean, read_yaml
from vllm_mxext.config.values import byte_size
from vllm_mxext.errors import ConfigError
from vllm_mxext.hub.hardware import Device, Hardware, Host
from vllm_mxext.hub.manifest.model import EngineName, Vendor

_KIND = "hardware file"

Bytes = Annotated[int, BeforeValidator(byte_size(0).parse)]


class _Section(BaseModel):
    """Keys that the file may have at one place, and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class HostSection(_Section):
    """`host`: the machine around its devices; what is not given is typical."""

    os: str = "linux"
    machine: str = "x86_64"
    cpu: str = ""
    cores: int = Field(1, ge=1)
    threads: int | None = Field(None, ge=1)
    numa_nodes: int = Field(1, ge=1)
    isa: tuple[str, ...] = ()
    memory: Bytes
    memory_available: Bytes | None = None
    disk_available: Bytes | None = None


class DeviceSection(_Section):
    """An entry of `devices`: `count` equal devices."""

    vendor: Vendor
    name: str
    count: int = Field(1, ge=1, le=1024)
    arch: str = ""
    pci_id: str = ""
    memory: Bytes
    memory_available: Bytes | None = None
    mig: bool = False
    shares_host_memory: bool = False
    driver: str = ""


class MachineFile(_Section):
    """The whole file."""

    name: str
    host: HostSection
    devices: tuple[DeviceSection, ...] = ()
    engines: tuple[EngineName, ...] = ("native",)


_SECTIONS: dict[tuple[str, ...], type[_Section]] = {
    (): MachineFile,
    ("host",): HostSection,
    ("devices",): DeviceSection,
}


def read_machine_file(file: Path) -> Hardware:
    """Reads a file.

    Raises:
        ConfigError: it cannot be read, or a key or value is wrong; the text is one sentence.
    """
    content = read_yaml(file, _KIND.capitalize())
    try:
        machine = MachineFile.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"In {_KIND} '{file}': {_first_finding(error)}") from None
    sections = [section for section in machine.devices for _ in range(section.count)]
    devices = tuple(_device(section, index) for index, section in enumerate(sections))
    return Hardware(machine.name, _host(machine.host), devices, machine.engines)


def _host(section: HostSection) -> Host:
    available = section.memory if section.memory_available is None else section.memory_available
    return Host(
        os=section.os,
        machine=section.machine,
        cpu=section.cpu,
        num_cores=section.cores,
        num_threads=section.threads or section.cores,
        num_numa_nodes=section.numa_nodes,
        isa=section.isa,
        memory_bytes=section.memory,
        memory_available_bytes=min(available, section.memory),
        disk_available_bytes=section.disk_available,
    )


def _device(section: DeviceSection, index: int) -> Device:
    available = section.memory if section.memory_available is None else section.memory_available
    return Device(
        vendor=section.vendor,
        name=section.name,
        index=index,
        pci_id=section.pci_id,
        arch=section.arch,
        memory_bytes=section.memory,
        memory_available_bytes=min(available, section.memory),
        is_mig=section.mig,
        driver=section.driver,
        shares_host_memory=section.shares_host_memory,
    )


def _first_finding(error: ValidationError) -> str:
    findings: list[Any] = error.errors(include_url=False, include_context=False)
    unknown = [finding for finding in findings if finding["type"] == "extra_forbidden"]
    finding = (unknown or findings)[0]
    path = finding["loc"]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    if unknown:
        section = _SECTIONS[tuple(part for part in path[:-1] if isinstance(part, str))]
        known = list(section.model_fields)
        return f"unknown key {where}{did_you_mean(str(path[-1]), known)} Known here: {', '.join(known)}."
    if finding["type"] == "missing":
        return f"{where} is missing."
    wanted = finding["msg"].removeprefix("Value error, ")
    if finding["type"] == "model_type":
        wanted = "must be a mapping of keys"
    return f"{where}: {wanted}, got {finding['input']!r}."
