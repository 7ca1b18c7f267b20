"""The memory of the machine within the limits of its control groups."""

from __future__ import annotations

from pathlib import Path

import psutil

from vllm_mxext.native.worker.device_memory import device_memory, host_memory

MIB = 2**20


def write_group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_without_limits_the_machine_counts(tmp_path: Path) -> None:
    memory = host_memory(tmp_path / "absent", tmp_path)
    assert memory.total_bytes == psutil.virtual_memory().total
    assert 0 < memory.available_bytes <= memory.total_bytes


def test_a_version_2_limit_counts_and_its_page_cache_is_available(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    write_group(
        tmp_path / "a" / "b",
        memory__max=f"{100 * MIB}\n",
        memory__current=f"{60 * MIB}\n",
        memory__stat=f"anon 5\ninactive_file {20 * MIB}\n",
    )
    memory = host_memory(own, tmp_path)
    assert memory.total_bytes == 100 * MIB
    assert memory.available_bytes == 60 * MIB


def test_the_tightest_of_nested_limits_counts(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    write_group(tmp_path / "a", memory__max=str(50 * MIB), memory__current="0")
    write_group(tmp_path / "a" / "b", memory__max="max", memory__current="0")
    assert host_memory(own, tmp_path).total_bytes == 50 * MIB


def test_a_container_sees_its_limit_at_the_root(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/\n")
    write_group(tmp_path, memory__max=str(80 * MIB), memory__current=str(90 * MIB))
    memory = host_memory(own, tmp_path)
    assert (memory.total_bytes, memory.available_bytes) == (80 * MIB, 0)


def test_a_version_1_limit_counts(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("5:cpu,cpuacct:/x\n4:memory:/job\n")
    write_group(
        tmp_path / "memory" / "job",
        memory__limit_in_bytes=str(70 * MIB),
        memory__usage_in_bytes=str(10 * MIB),
        memory__stat=f"total_inactive_file {4 * MIB}\n",
    )
    memory = host_memory(own, tmp_path)
    assert (memory.total_bytes, memory.available_bytes) == (70 * MIB, 64 * MIB)


def test_this_machine_has_memory() -> None:
    memory = device_memory("cpu")
    assert 0 < memory.available_bytes <= memory.total_bytes <= psutil.virtual_memory().total
