"""Machines described in YAML: sizes, counts, and complaints that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.hub.machines import GIB, MACHINE_FILES
from vllm_mxext.errors import ConfigError
from vllm_mxext.hub.hardware_inspect import read_hardware


def written(folder: Path, text: str) -> Path:
    file = folder / "machine.yaml"
    file.write_text(text)
    return file


@pytest.mark.promise("HUB-HW-3")
def test_a_file_stands_in_for_a_machine(tmp_path: Path) -> None:
    text = """
name: two cards
host: {memory: 64GiB, memory_available: 60GiB, cores: 8, isa: [avx2], disk_available: 1TB}
devices:
  - {vendor: nvidia, name: NVIDIA L4, count: 2, memory: 23034MiB, arch: sm_89}
  - {vendor: amd, name: MI300X, memory: 192GiB, memory_available: 100GiB}
engines: [native, vllm]
"""
    found = read_hardware(written(tmp_path, text))
    assert [(device.index, device.name) for device in found.devices] == [
        (0, "NVIDIA L4"),
        (1, "NVIDIA L4"),
        (2, "MI300X"),
    ]
    assert found.devices[0].memory_available_bytes == found.devices[0].memory_bytes == 23034 * 2**20
    assert found.devices[2].memory_available_bytes == 100 * GIB
    assert (found.host.num_threads, found.host.disk_available_bytes) == (8, 10**12)
    assert found.engines == ("native", "vllm")


@pytest.mark.promise("HUB-HW-3")
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name: a\nhost: {memroy: 1GiB}", "unknown key host.memroy; did you mean memory?"),
        (
            "name: a\nhost: {memory: 1GiB}\ndevices: [{vendor: nvidia, nam: b}]",
            "unknown key devices[0].nam; did you mean name?",
        ),
        ("name: a\nhosts: {}", "unknown key hosts; did you mean host?"),
        ("name: a", "host is missing."),
        ("name: a\nhost: {memory: much}", "host.memory: must be a size of at least 0 bytes, such as 2GiB"),
        ("name: a\nhost: {memory: 1GiB, cores: 0}", "host.cores: Input should be greater than or equal to 1, got 0."),
        ("name: a\nhost: [1]", "host: must be a mapping of keys, got [1]."),
        ("name: a\nhost: {memory: 1GiB}\nengines: [vlm]", "engines[0]: Input should be 'native', 'vllm'"),
        ("- a", "must hold lines of the form"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_by_name_of_file_and_key(tmp_path: Path, text: str, complaint: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_hardware(file)
    assert complaint in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("file", MACHINE_FILES, ids=lambda file: file.stem)
def test_published_machines_can_be_read(file: Path) -> None:
    found = read_hardware(file)
    assert found.host.memory_bytes > GIB
    assert "native" in found.engines
