"""Machines are read from their own files, libraries and programs, and what fails becomes a note."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_mxext.hub import hardware_inspect
from vllm_mxext.hub.hardware import Device, Host
from vllm_mxext.hub.hardware_inspect import THIS_MACHINE, describe, inspect_hardware, main
from vllm_mxext.hub.inspect import apple, cpu
from vllm_mxext.hub.inspect.amd import gfx_name, inspect_amd
from vllm_mxext.hub.inspect.metax import inspect_metax, parse_mx_smi
from vllm_mxext.hub.inspect.nvidia import inspect_nvidia
from vllm_mxext.hub.inspect.programs import run_program

GIB = 2**30
HOST = Host(memory_bytes=64 * GIB, memory_available_bytes=60 * GIB)
SAPPHIRE_RAPIDS = (
    "fpu avx f16c fma avx2 avx512f avx512dq avx512cd avx512bw avx512vl avx512_vnni avx_vnni avx512_bf16 avx512_fp16 "
    "amx_bf16 amx_tile amx_int8"
)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.promise("HUB-HW-1")
def test_this_machine_is_inspected_without_torch_and_without_trouble(tmp_path: Path) -> None:
    found = inspect_hardware(tmp_path / "not" / "there")
    assert found.name == THIS_MACHINE
    assert found.host.num_cores >= 1
    assert 0 < found.host.memory_available_bytes <= found.host.memory_bytes
    assert found.host.disk_available_bytes is not None
    assert found.engines == ("native",)
    assert found.notes == ()


@pytest.mark.promise("HUB-HW-1")
def test_what_cannot_be_looked_at_becomes_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the driver is confused")

    for module, function in (("nvidia", "inspect_nvidia"), ("amd", "inspect_amd"), ("cpu", "linux_host")):
        monkeypatch.setattr(getattr(hardware_inspect, module), function, broken)
    monkeypatch.setattr(hardware_inspect.platform, "system", lambda: "Linux")
    found = inspect_hardware()
    assert found.devices == ()
    assert [note.split(" could")[0] for note in found.notes] == ["The processor", "NVIDIA devices", "AMD devices"]
    assert "the driver is confused" in found.notes[0]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            f"flags : {SAPPHIRE_RAPIDS}",
            "amx_bf16 amx_int8 amx_tile avx avx2 avx512 avx512_bf16 avx512_fp16 avx512_vnni avx_vnni f16c fma",
        ),
        ("flags : fpu sse2 avx2 fma avx512f", "avx2 fma"),
        (
            "Features : fp asimd asimdhp asimddp sve i8mm bf16",
            "arm64_bf16 arm64_dotprod arm64_fp16 arm64_i8mm arm64_sve neon",
        ),
        ("flags :", ""),
    ],
)
def test_instruction_sets_have_the_names_of_profiles(tmp_path: Path, line: str, expected: str) -> None:
    root = write(tmp_path, {"proc/cpuinfo": f"processor : 0\n{line}\n\nprocessor : 1\nflags : avx2\n"})
    assert " ".join(cpu.instruction_sets(cpu.read_cpuinfo(root))) == expected


def test_memory_nodes_and_a_boards_name_are_found(tmp_path: Path) -> None:
    nodes = {f"sys/devices/system/node/node{number}/cpulist": "0" for number in range(4)}
    root = write(tmp_path, {**nodes, "sys/firmware/devicetree/base/model": "Some Board 5\0"})
    host = cpu.linux_host(root, "aarch64", None)
    assert (host.num_numa_nodes, host.cpu, host.machine) == (4, "Some Board 5", "aarch64")
    assert host.disk_available_bytes is None


class NVMLError(Exception):
    """As of pynvml."""


class FakeNvml:
    """NVML with some boards: name, capability, memory in GiB (None: it does not say), slices in GiB."""

    NVMLError = NVMLError

    def __init__(self, *boards: tuple[str, tuple[int, int], int | None, tuple[int, ...]]) -> None:
        self.boards = boards
        self.is_open = False

    def nvmlInit(self) -> None:  # noqa: N802
        self.is_open = True

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.is_open = False

    def nvmlSystemGetDriverVersion(self) -> bytes:  # noqa: N802
        return b"550.54.15"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.boards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple[int, int]:  # noqa: N802
        if self.boards[index][0] == "lost":
            raise NVMLError("GPU is lost")
        return (index, -1)

    def nvmlDeviceGetName(self, handle: tuple[int, int]) -> str:  # noqa: N802
        board = self.boards[handle[0]]
        return board[0] if handle[1] < 0 else f"{board[0]} MIG {board[3][handle[1]]}g"

    def nvmlDeviceGetUUID(self, handle: tuple[int, int]) -> str:  # noqa: N802
        return f"GPU-{handle[0]}0aa" if handle[1] < 0 else f"MIG-{handle[0]}{handle[1]}bb"

    def nvmlDeviceGetCudaComputeCapability(self, handle: tuple[int, int]) -> tuple[int, int]:  # noqa: N802
        return self.boards[handle[0]][1]

    def nvmlDeviceGetPciInfo(self, handle: tuple[int, int]) -> Any:  # noqa: N802
        return SimpleNamespace(pciDeviceId=0x2330_10DE)

    def nvmlDeviceGetMemoryInfo(self, handle: tuple[int, int]) -> Any:  # noqa: N802
        board = self.boards[handle[0]]
        size = board[2] if handle[1] < 0 else board[3][handle[1]]
        if size is None:
            raise NVMLError("Not Supported")
        return SimpleNamespace(total=size * GIB, free=(size - 1) * GIB)

    def nvmlDeviceGetMigMode(self, handle: tuple[int, int]) -> tuple[int, int]:  # noqa: N802
        mode = int(bool(self.boards[handle[0]][3]))
        return (mode, mode)

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: tuple[int, int]) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: tuple[int, int], number: int) -> tuple[int, int]:  # noqa: N802
        if number >= len(self.boards[handle[0]][3]):
            raise NVMLError("Not Found")
        return (handle[0], number)


H100 = ("NVIDIA H100", (9, 0), 80, ())
SLICED = ("NVIDIA A100", (8, 0), 40, (20, 10))


def nvidia(nvml: FakeNvml, **environ: str) -> tuple[tuple[Device, ...], tuple[str, ...]]:
    return inspect_nvidia(environ, Path("/nowhere"), HOST, nvml)


@pytest.mark.promise("HUB-HW-2")
def test_nvidia_devices_are_read_through_nvml() -> None:
    nvml = FakeNvml(H100)
    (device,), notes = nvidia(nvml)
    assert device == Device(
        "nvidia", "NVIDIA H100", 0, "GPU-00aa", "10de:2330", "sm_90", 80 * GIB, 79 * GIB, driver="550.54.15"
    )
    assert not notes
    assert not nvml.is_open


@pytest.mark.promise("HUB-HW-2")
@pytest.mark.parametrize(
    ("variable", "uuids"),
    [
        ("1,0", ["GPU-10aa", "GPU-00aa"]),
        ("GPU-2", ["GPU-20aa"]),
        ("", []),
        ("-1", []),
        ("1,-1,0", ["GPU-10aa"]),
        ("0,9,1", ["GPU-00aa"]),
        ("1,1", []),
        ("3", ["MIG-30bb"]),
        ("MIG-31", ["MIG-31bb"]),
        ("GPU-", []),
    ],
)
def test_cuda_visible_devices_is_obeyed_as_cuda_does(variable: str, uuids: list[str]) -> None:
    devices, _ = nvidia(FakeNvml(H100, H100, H100, SLICED), CUDA_VISIBLE_DEVICES=variable)
    assert [device.uuid for device in devices] == uuids


@pytest.mark.promise("HUB-HW-2")
def test_slices_are_devices_with_their_own_memory() -> None:
    devices, _ = nvidia(FakeNvml(SLICED))
    assert [(device.memory_bytes // GIB, device.is_mig, device.arch) for device in devices] == [
        (20, True, "sm_80"),
        (10, True, "sm_80"),
    ]


@pytest.mark.parametrize("value", ["void", "none"])
def test_a_container_without_nvidia_devices_has_none(value: str) -> None:
    assert nvidia(FakeNvml(H100), NVIDIA_VISIBLE_DEVICES=value) == ((), ())


def test_a_device_that_cannot_be_asked_is_left_out_with_a_note() -> None:
    devices, notes = nvidia(FakeNvml(("lost", (0, 0), 0, ()), H100), CUDA_VISIBLE_DEVICES="1")
    assert [device.index for device in devices] == [1]
    assert notes == ("NVIDIA device 0 cannot be asked: GPU is lost.",)


def test_a_device_without_memory_of_its_own_shares_the_machines() -> None:
    (device,), _ = nvidia(FakeNvml(("NVIDIA GB10", (12, 1), None, ())))
    assert device.shares_host_memory
    assert device.memory_bytes == HOST.memory_bytes
    assert device.arch == "sm_121"


def test_unequal_devices_get_a_note_about_their_order() -> None:
    mixed = FakeNvml(H100, ("Tesla T4", (7, 5), 15, ()))
    assert "CUDA_DEVICE_ORDER" in nvidia(mixed, CUDA_VISIBLE_DEVICES="0")[1][0]
    assert nvidia(mixed, CUDA_VISIBLE_DEVICES="0", CUDA_DEVICE_ORDER="PCI_BUS_ID")[1] == ()


def test_a_driver_that_does_not_work_is_a_note() -> None:
    nvml = FakeNvml()

    def fail() -> None:
        raise NVMLError("Driver/library version mismatch")

    nvml.nvmlInit = fail  # type: ignore[method-assign]
    assert "version mismatch" in nvidia(nvml)[1][0]


KFD_GPU = """cpu_cores_count 0
simd_count 1216
gfx_target_version 90402
vendor_id 4098
device_id 29857
drm_render_minor {minor}
unique_id {unique}
"""
DRM = "sys/class/drm/renderD{minor}/device"


def amd_root(root: Path) -> Path:
    nodes = "sys/class/kfd/kfd/topology/nodes"
    files = {f"{nodes}/0/properties": "cpu_cores_count 48\nsimd_count 0\ngfx_target_version 0\n"}
    for node, minor in ((2, 128), (10, 136)):
        files[f"{nodes}/{node}/properties"] = KFD_GPU.format(minor=minor, unique=node)
        folder = DRM.format(minor=minor)
        files[f"{folder}/mem_info_vram_total"] = f"{192 * GIB}\n"
        files[f"{folder}/mem_info_vram_used"] = f"{2 * GIB}\n"
    files[f"{DRM.format(minor=128)}/product_name"] = "AMD Instinct MI300X\n"
    files["sys/module/amdgpu/version"] = "6.8.5\n"
    return write(root, files)


@pytest.mark.promise("HUB-HW-2")
def test_amd_devices_are_read_from_the_kernels_files(tmp_path: Path) -> None:
    first, second = inspect_amd({}, amd_root(tmp_path))
    assert first == Device(
        "amd",
        "AMD Instinct MI300X",
        0,
        "GPU-0000000000000002",
        "1002:74a1",
        "gfx942",
        192 * GIB,
        190 * GIB,
        driver="6.8.5",
    )
    assert (second.index, second.name) == (1, "AMD gfx942")


@pytest.mark.parametrize(
    ("environ", "indexes"),
    [
        ({"HIP_VISIBLE_DEVICES": "1"}, [1]),
        ({"CUDA_VISIBLE_DEVICES": "1,0"}, [1, 0]),
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, [0]),
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-0000000000000002"}, [0]),
        ({"ROCR_VISIBLE_DEVICES": ""}, []),
    ],
)
def test_amd_devices_are_chosen_by_rocr_then_hip(tmp_path: Path, environ: dict[str, str], indexes: list[int]) -> None:
    assert [device.index for device in inspect_amd(environ, amd_root(tmp_path))] == indexes


@pytest.mark.parametrize(("version", "name"), [(90402, "gfx942"), (90010, "gfx90a"), (110_001, "gfx1101")])
def test_amd_architectures_have_the_compilers_names(version: int, name: str) -> None:
    assert gfx_name(version) == name


MX_SMI_2_2 = """mx-smi  version: 2.2.8

=================== MetaX System Management Interface Log ===================
Timestamp                                         : Fri Mar  6 11:58:48 2026

Attached GPUs                                     : 2
+---------------------------------------------------------------------------------+
| MX-SMI 2.2.8                        Kernel Mode Driver Version: 3.0.11          |
| MACA Version: 3.1.0.14              BIOS Version: 1.26.1.0                      |
|------------------------------------+---------------------+----------------------+
| GPU     NAME         Persistence-M | Bus-id              | GPU-Util      sGPU-M |
| Temp    Pwr:Usage/Cap         Perf | Memory-Usage        | GPU-State            |
|====================================+=====================+======================|
| 0       MetaX C500             Off | 0000:01:00.0        | 0%            Native |
| 37C     29W / 225W              P0 | 666/65536 MiB       | Available            |
+------------------------------------+---------------------+----------------------+
| 1       MetaX N260             Off | 0000:02:00.0        | 0%            Native |
| 37C     29W / 225W              P0 | 60982/65536 MiB     | Available            |
+------------------------------------+---------------------+----------------------+
"""
MX_SMI_2_1 = """| MX-SMI 2.1.6                        Kernel Mode Driver Version: 2.5.014         |
| GPU         NAME                   | Bus-id              | GPU-Util             |
| Temp        Power                  | Memory-Usage        |                      |
| 0           MXC500                 | 0000:05:00.0        | 0%                   |
| 51C         71W                    | 60982/65536 MiB     |                      |
"""


@pytest.mark.promise("HUB-HW-2")
def test_metax_devices_are_read_from_mx_smis_table(tmp_path: Path) -> None:
    folder = "sys/bus/pci/devices/0000:01:00.0"
    root = write(tmp_path, {f"{folder}/vendor": "0x9999\n", f"{folder}/device": "0x4001\n"})
    first, second = parse_mx_smi(MX_SMI_2_2, root)
    assert first == Device(
        "metax", "MetaX C500", 0, "", "9999:4001", "xcore1000", 64 * GIB, (65536 - 666) * 2**20, driver="3.0.11"
    )
    assert (second.index, second.name, second.arch) == (1, "MetaX N260", "")
    (old,) = parse_mx_smi(MX_SMI_2_1, root)
    assert (old.name, old.arch, old.memory_bytes) == ("MetaX C500", "xcore1000", 64 * GIB)


def test_metax_devices_are_none_without_its_program_and_chosen_by_its_variable(tmp_path: Path) -> None:
    def run(command: Sequence[str]) -> str | None:
        return MX_SMI_2_2 if command == ["mx-smi"] else None

    assert inspect_metax({}, tmp_path, lambda command: None) == ()
    assert [device.index for device in inspect_metax({"MACA_VISIBLE_DEVICES": "1"}, tmp_path, run)] == [1]
    assert parse_mx_smi("Segmentation fault", tmp_path) == ()


M3_MAX = """hw.memsize: 68719476736
hw.physicalcpu: 16
hw.logicalcpu: 16
machdep.cpu.brand_string: Apple M3 Max
hw.optional.neon: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_I8MM: 1
"""


@pytest.mark.promise("HUB-HW-2")
@pytest.mark.parametrize(
    ("change", "gibibytes", "arch"),
    [
        ("", 48, "apple9"),
        ("hw.memsize: 17179869184", 10.67, "apple9"),
        ("iogpu.wired_limit_mb: 57344", 56, "apple9"),
        ("machdep.cpu.brand_string: Apple M1", 48, "apple7"),
    ],
)
def test_an_apple_gpu_has_the_share_of_memory_that_metal_recommends(change: str, gibibytes: float, arch: str) -> None:
    values = cpu.parse_sysctl(f"{M3_MAX}{change}\n")
    host = cpu.apple_host(values, "arm64", 50 * GIB, None)
    device = apple.apple_device(values, host)
    assert device is not None
    assert device.memory_bytes / GIB == pytest.approx(gibibytes, 0.001)
    assert (device.arch, device.shares_host_memory) == (arch, True)
    assert host.isa == ("arm64_bf16", "arm64_i8mm", "neon")


def test_an_intel_mac_has_no_gpu_for_models() -> None:
    values = cpu.parse_sysctl("machdep.cpu.brand_string: Intel(R) Core(TM) i9-9880H\nhw.memsize: 17179869184\n")
    assert apple.apple_device(values, cpu.apple_host(values, "x86_64", GIB, None)) is None


def test_programs_that_are_missing_say_nothing() -> None:
    assert run_program(["no-such-program-anywhere"]) is None
    assert run_program(["sh", "-c", "echo said; exit 3"]) == "said\n"


def test_the_module_prints_the_machine_for_people_and_as_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["host"]["num_cores"] >= 1
    file = tmp_path / "machine.yaml"
    file.write_text(
        "name: box\nhost: {memory: 16GiB}\ndevices: [{vendor: nvidia, name: A10, memory: 24GB, count: 2}]\n"
    )
    assert main(["--hardware", str(file)]) == 0
    text = capsys.readouterr().out
    assert "box" in text
    assert text.count("A10") == 2
    assert main(["--hardware", str(tmp_path / "none.yaml")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_machine_without_devices_says_so() -> None:
    assert "none besides the processor" in describe(hardware_inspect.Hardware("box", HOST))
