"""Cores and memory are counted with affinity, hyper-threads and control groups in mind."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_mxext.config.machine import Memory, cache_folder, usable_cores, usable_memory

ALL = frozenset(range(8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with 4 cores of 2 hyper-threads: CPUs n and n + 4 are siblings."""
    for cpu in ALL:
        topology = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_hyper_threads_of_one_core_count_once(root: Path) -> None:
    assert usable_cores(root, ALL) == 4


def test_the_affinity_of_the_process_limits_the_cores(root: Path) -> None:
    assert usable_cores(root, frozenset({0, 4, 1})) == 2


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1)])
def test_a_version_2_quota_is_rounded_down_but_never_to_zero(root: Path, quota: str, cores: int) -> None:
    write(root, "proc/self/cgroup", "0::/a/b\n")
    write(root, "sys/fs/cgroup/a/b/cpu.max", quota)
    assert usable_cores(root, ALL) == cores


def test_a_quota_higher_up_counts_too(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/a/b\n")
    write(root, "sys/fs/cgroup/a/b/cpu.max", "max 100000")
    write(root, "sys/fs/cgroup/a/cpu.max", "300000 100000")
    assert usable_cores(root, ALL) == 3


def test_a_version_1_quota_counts(root: Path) -> None:
    write(root, "proc/self/cgroup", "4:cpu,cpuacct:/box\n")
    write(root, "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "200000")
    write(root, "sys/fs/cgroup/cpu/box/cpu.cfs_period_us", "100000")
    assert usable_cores(root, ALL) == 2


def test_a_memory_limit_below_the_machines_memory_counts(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/a\n")
    write(root, "proc/meminfo", "MemTotal: 8000 kB\nMemAvailable: 3000 kB\n")
    unlimited = usable_memory(root)
    assert unlimited.available_bytes == 3000 * 1024
    write(root, "sys/fs/cgroup/a/memory.max", "1048576\n")
    write(root, "sys/fs/cgroup/a/memory.current", "1000000\n")
    write(root, "sys/fs/cgroup/a/memory.stat", "anon 5\ninactive_file 1000\n")
    assert usable_memory(root) == Memory(total_bytes=1048576, available_bytes=1048576 - 1000000 + 1000)


def test_a_version_1_memory_limit_counts(root: Path) -> None:
    write(root, "proc/self/cgroup", "9:memory:/box\n")
    write(root, "sys/fs/cgroup/memory/box/memory.limit_in_bytes", "1048576\n")
    assert usable_memory(root).total_bytes == 1048576


def test_the_tightest_of_nested_memory_limits_counts(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/a/b\n")
    write(root, "sys/fs/cgroup/a/memory.max", "52428800")
    write(root, "sys/fs/cgroup/a/b/memory.max", "max")
    assert usable_memory(root).total_bytes == 52428800


def test_a_container_beyond_its_limit_has_no_memory_left(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/\n")
    write(root, "sys/fs/cgroup/memory.max", "1048576")
    write(root, "sys/fs/cgroup/memory.current", "2097152")
    assert usable_memory(root) == Memory(total_bytes=1048576, available_bytes=0)


def test_a_version_1_page_cache_is_available(root: Path) -> None:
    write(root, "proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/job\n")
    write(root, "sys/fs/cgroup/memory/job/memory.limit_in_bytes", "1048576")
    write(root, "sys/fs/cgroup/memory/job/memory.usage_in_bytes", "1000000")
    write(root, "sys/fs/cgroup/memory/job/memory.stat", "total_inactive_file 4000\n")
    assert usable_memory(root).available_bytes == 1048576 - 1000000 + 4000


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder({}) == Path("/home/me/.cache/vllm_mxext")
    assert cache_folder({"XDG_CACHE_HOME": "/cache"}) == Path("/cache/vllm_mxext")
    assert cache_folder({"XDG_CACHE_HOME": "relative"}) == Path("/home/me/.cache/vllm_mxext")


def test_without_a_home_there_is_no_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert cache_folder({}) is None
