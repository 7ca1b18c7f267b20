"""Choosing, checking and loading the compiled library."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch

from vllm_mxext import envs
from vllm_mxext.errors import ConfigError
from vllm_mxext.native.kernels import library
from vllm_mxext.native.kernels.compiled import CompiledKernels
from vllm_mxext.native.kernels.selection import describe_kernels, select_kernels
from vllm_mxext.native.kernels.torch_kernels import TorchKernels

CPU = torch.device("cpu")
needs_libraries = pytest.mark.skipif(library.find_library("generic") is None, reason="no compiled kernels installed")


@pytest.fixture(autouse=True)
def no_forced_isa(monkeypatch):
    monkeypatch.delenv(envs.CPU_ISA.name, raising=False)


@pytest.fixture
def nothing_installed(monkeypatch, tmp_path):
    monkeypatch.setenv(envs.KERNEL_DIR.name, str(tmp_path))
    monkeypatch.setattr(library.kernels_package, "__path__", [])
    return tmp_path


@needs_libraries
def test_the_fastest_library_this_cpu_runs_is_chosen():
    kernels = select_kernels(CPU, torch.bfloat16)
    assert isinstance(kernels, CompiledKernels)
    assert kernels.name == library.runnable_isas()[0]
    assert kernels.is_batch_invariant
    assert describe_kernels()["selected"] == kernels.name


@needs_libraries
def test_the_environment_variable_forces_an_instruction_set(monkeypatch):
    monkeypatch.setenv(envs.CPU_ISA.name, "generic")
    assert select_kernels(CPU, torch.float32).name == "generic"
    assert describe_kernels()["forced"] == "generic"


def test_the_environment_variable_forces_the_torch_path_without_a_warning(monkeypatch, caplog):
    monkeypatch.setenv(envs.CPU_ISA.name, "torch")
    with caplog.at_level(logging.WARNING):
        assert isinstance(select_kernels(CPU, torch.float32), TorchKernels)
    assert not caplog.records
    assert describe_kernels()["selected"] == "torch"


def test_an_unknown_instruction_set_is_refused_with_the_known_ones(monkeypatch):
    monkeypatch.setenv(envs.CPU_ISA.name, "sse9")
    with pytest.raises(ConfigError, match=r"sse9.*avx512_bf16, avx512, avx2, arm64_bf16, generic, torch"):
        select_kernels(CPU, torch.float32)


@needs_libraries
def test_a_forced_instruction_set_that_the_cpu_lacks_is_refused(monkeypatch, tmp_path):
    generic = library.find_library("generic")
    shutil.copy(generic, tmp_path / "mx_kernels_avx512.so")
    shutil.copy(generic, tmp_path)
    monkeypatch.setenv(envs.KERNEL_DIR.name, str(tmp_path))
    monkeypatch.setenv(envs.CPU_ISA.name, "avx512")
    monkeypatch.setattr(library.KernelLibrary, "cpu_supports", lambda self, isa: isa == "generic")
    with pytest.raises(ConfigError, match="This CPU cannot run the avx512 kernels; it can run: generic"):
        select_kernels(CPU, torch.float32)


def test_a_forced_instruction_set_without_a_library_is_refused(monkeypatch, nothing_installed):
    monkeypatch.setenv(envs.CPU_ISA.name, "generic")
    with pytest.raises(ConfigError, match="No compiled kernels for generic"):
        select_kernels(CPU, torch.float32)


@pytest.mark.promise("INSTALL-1")
@pytest.mark.usefixtures("nothing_installed")
def test_without_libraries_the_torch_path_is_used_and_said_so(caplog):
    with caplog.at_level(logging.WARNING):
        kernels = select_kernels(CPU, torch.float32)
    assert isinstance(kernels, TorchKernels)
    assert not kernels.is_batch_invariant
    assert "No compiled kernels are installed" in caplog.text


@needs_libraries
def test_a_library_of_another_interface_version_is_refused_as_stale(monkeypatch):
    monkeypatch.setattr(library, "ABI_VERSION", 999)
    with pytest.raises(ConfigError, match=r"stale.*needs 999.*reinstall"):
        library.KernelLibrary("generic", library.find_library("generic"))


def test_a_file_that_is_no_library_is_refused(nothing_installed):
    broken = nothing_installed / "mx_kernels_generic.so"
    broken.write_text("not a library")
    with pytest.raises(ConfigError, match="Cannot load the compiled kernels"):
        select_kernels(CPU, torch.float32)


@needs_libraries
def test_a_dtype_without_compiled_kernels_is_refused():
    with pytest.raises(ConfigError, match="float64"):
        CompiledKernels(library.load_library("generic"), torch.float64)


def test_other_devices_take_the_torch_path():
    assert isinstance(select_kernels(torch.device("meta"), torch.float32), TorchKernels)
