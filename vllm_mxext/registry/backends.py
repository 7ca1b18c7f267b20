"""Backends: the command line of each, whether it is installed, and how to install it."""

from __future__ import annotations

import importlib.util
import platform
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

from vllm_mxext.builtin import BUILTIN_ALIASES, BUILTIN_MODEL_NAME
from vllm_mxext.errors import ConfigError
from vllm_mxext.registry.errors import BackendMissingError
from vllm_mxext.registry.ports import FIRST
from vllm_mxext.registry.record import NATIVE, ServerRecord

OUR_SERVER = (sys.executable, "-m", "vllm_mxext.entrypoints.openai.api_server")

_QUIET = ("--disable-access-log-for-endpoints", "/health,/metrics,/version,/v1/models")
"""Keeps the registry's own health checks and probes out of the server's log."""


@dataclass(frozen=True, slots=True)
class Backend:
    """One kind of server.

    Attributes:
        name: value of `--backend`.
        command: returns the program and flags that serve a record on a port.
        modules: Python packages, one of which must be installed; none if it is not a package.
        programs: programs, one of which may be installed instead.
        install: the command that installs it.
        needs: the machine that it requires, for people; empty if any will do.
        runs_here: whether this machine is one, as far as can be told without asking a driver.
        key_variable: environment variable from which the program reads the key that clients must present; None if it
            reads none.
    """

    name: str
    command: Callable[[ServerRecord, int], list[str]]
    modules: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    install: str = ""
    needs: str = ""
    runs_here: Callable[[], bool] = lambda: True
    key_variable: str | None = None


@dataclass(frozen=True, slots=True)
class Installation:
    """Whether a backend is installed.

    Attributes:
        is_installed: whether it is.
        text: the same in words, with how to install it if it is missing.
    """

    is_installed: bool
    text: str


def look(backend: Backend) -> Installation:
    """Looks whether a backend is installed, without importing or starting it."""
    if backend.name == NATIVE:
        return Installation(True, "is part of vllm_mxext")
    wants = f" It needs {backend.needs}." if backend.needs else ""
    for module in backend.modules:
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:  # a folder of that name is no package
            version = _version(module)
            return Installation(True, f"package {module}{f' {version}' if version else ''} is installed.{wants}")
    for program in backend.programs:
        path = shutil.which(program)
        if path is not None:
            return Installation(True, f"program {path} is installed.{wants}")
    machine = "" if backend.runs_here() else " (this machine is not one)"
    needs = f" It needs {backend.needs}{machine}." if backend.needs else ""
    return Installation(False, f"is not installed here; install it with: {backend.install}.{needs}")


def check_settings(record: ServerRecord) -> None:
    """Checks that the backend of a record supports its settings.

    Raises:
        ConfigError: it does not.
    """
    if record.kind == NATIVE and (record.tensor_parallel or 1) > 1:
        raise ConfigError(
            f"The native backend runs on one device in this version, not on {record.tensor_parallel}; leave out "
            "--tensor-parallel, or choose --backend vllm."
        )


def startable(record: ServerRecord) -> Backend:
    """Returns the backend of a record, if this version can start it here.

    Raises:
        BackendMissingError: it cannot; the text says what to do instead.
        ConfigError: the backend does not support a setting.
    """
    check_settings(record)
    backend = BACKENDS[record.kind]
    if backend.name == NATIVE:
        return backend
    found = look(backend)
    port = record.known_port or FIRST
    command, address = shlex.join(backend.command(record, port)), f"http://127.0.0.1:{port}"
    if not found.is_installed:
        raise BackendMissingError(
            f"'{record.name}' cannot be started, because {backend.name} {found.text} Or use the native backend: "
            f"'mxext server edit {record.name} --backend native'."
        )
    raise BackendMissingError(
        f"'{record.name}' is not started, because this version starts only the native backend, although {found.text} "
        f"Start it yourself with '{command}', then register it: 'mxext server add NAME --endpoint-url {address}'."
    )


def _version(module: str) -> str | None:
    import importlib.metadata  # noqa: PLC0415 - slow to import, and not every command asks

    try:
        return importlib.metadata.version(module)  # treats dashes and underscores alike
    except importlib.metadata.PackageNotFoundError:
        return None


def _native(record: ServerRecord, port: int) -> list[str]:
    model = record.model_path or BUILTIN_MODEL_NAME
    names = BUILTIN_ALIASES if model in BUILTIN_ALIASES else (model,)
    quiet = () if _gives(record, "--disable-access-log-for-endpoints") else _QUIET
    return [
        *OUR_SERVER,
        *("--model", model, "--host", record.host, "--port", str(port)),
        *_served_names(record, list(dict.fromkeys((record.name, *names)))),
        *quiet,
        *_flags(record, tensor_parallel="--tensor-parallel-size", max_model_len="--max-model-len",
                gpu_memory_utilization="--gpu-memory-utilization", dtype="--dtype"),
        *record.extra_args,
    ]  # fmt: skip


def _vllm(record: ServerRecord, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", record.model_path or ""),
        *("--host", record.host, "--port", str(port), *_served_names(record, [record.name, record.model_path or ""])),
        *_flags(record, tensor_parallel="--tensor-parallel-size", max_model_len="--max-model-len",
                gpu_memory_utilization="--gpu-memory-utilization", dtype="--dtype"),
        *record.extra_args,
    ]  # fmt: skip


def _llama_cpp(record: ServerRecord, port: int) -> list[str]:
    return [
        *("llama-server", "--model", record.model_path or "", "--alias", record.name),
        *("--host", record.host, "--port", str(port), *_flags(record, max_model_len="--ctx-size"), *record.extra_args),
    ]


def _mlx(record: ServerRecord, port: int) -> list[str]:
    model = record.model_path or ""
    return ["mlx_lm.server", "--model", model, "--host", record.host, "--port", str(port), *record.extra_args]


def _transformers(record: ServerRecord, port: int) -> list[str]:
    model = record.model_path or ""
    return ["transformers", "serve", model, "--host", record.host, "--port", str(port), *record.extra_args]


def _tensorrt_llm(record: ServerRecord, port: int) -> list[str]:
    return [
        *("trtllm-serve", record.model_path or "", "--host", record.host, "--port", str(port)),
        *_flags(record, tensor_parallel="--tp_size", max_model_len="--max_seq_len",
                gpu_memory_utilization="--kv_cache_free_gpu_memory_fraction"),
        *record.extra_args,
    ]  # fmt: skip


def _served_names(record: ServerRecord, names: list[str]) -> list[str]:
    """Returns the flags by which requests may name the model or the server, unless the user has chosen names."""
    return [] if _gives(record, "--served-model-name") else ["--served-model-name", *names]


def _gives(record: ServerRecord, flag: str) -> bool:
    return any(one.partition("=")[0].replace("_", "-") == flag for one in record.extra_args)


def _flags(record: ServerRecord, **flags: str) -> list[str]:
    found: list[str] = []
    for setting, flag in flags.items():
        value = getattr(record, setting)
        if value is not None:
            found += [flag, str(value)]
    return found


def _is_apple_silicon() -> bool:
    return sys.platform == "darwin" and platform.machine() == "arm64"


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(NATIVE, _native, key_variable="VLLM_API_KEY"),
        Backend(
            "vllm", _vllm, modules=("vllm",), install="pip install vllm", needs="a supported GPU or its CPU build",
            key_variable="VLLM_API_KEY",
        ),
        Backend(
            "llama.cpp", _llama_cpp, programs=("llama-server",), needs="a GGUF file", key_variable="LLAMA_API_KEY",
            install="brew install llama.cpp, or from https://github.com/ggml-org/llama.cpp/releases",
        ),
        Backend(
            "mlx", _mlx, modules=("mlx_lm",), install="pip install mlx-lm", needs="a Mac with Apple silicon",
            runs_here=_is_apple_silicon,
        ),
        Backend(
            "transformers", _transformers, modules=("transformers",), install="pip install 'transformers[serving]'"
        ),
        Backend(
            "tensorrt_llm", _tensorrt_llm, modules=("tensorrt_llm",), programs=("trtllm-serve",),
            install="pip install tensorrt_llm --extra-index-url https://pypi.nvidia.com", needs="an NVIDIA GPU",
        ),
    )
}  # fmt: skip
"""By name."""
