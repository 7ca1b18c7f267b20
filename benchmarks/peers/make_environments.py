"""Makes an environment for each peer, outside of ours, and converts the checkpoint for it.

    python benchmarks/peers/make_environments.py openvino

What lies there already is kept. Takes minutes and gigabytes per peer.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from make_checkpoint import DEFAULT_FOLDER, make_checkpoint

DEFAULT_ROOT = Path("build/peers")
OPENVINO_FORMATS = ("fp16", "int8")


def make_environment(folder: Path, *requirements: str) -> Path:
    """Makes a virtual environment and returns its folder of programs."""
    programs = folder / "env" / "bin"
    if not (programs / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
        subprocess.run([str(programs / "pip"), "install", "--quiet", *requirements], check=True)
    return programs


def make_openvino(root: Path, checkpoint: Path) -> None:
    """Installs OpenVINO GenAI and converts the checkpoint to fp16 and int8."""
    folder = root / "openvino"
    programs = make_environment(folder, "torch>=2.11,<2.14", "openvino-genai", "optimum-intel[openvino]")
    # Builds for CUDA, which are not wanted, break the import of transformers.
    subprocess.run([str(programs / "pip"), "uninstall", "--quiet", "--yes", "torchvision", "torchaudio"], check=True)
    for form in OPENVINO_FORMATS:
        if not (folder / form / "openvino_model.bin").exists():
            options = ["--task", "text-generation-with-past", "--weight-format", form]
            convert = [str(programs / "optimum-cli"), "export", "openvino", "--model", str(checkpoint), *options]
            subprocess.run([*convert, str(folder / form)], check=True)


PEERS = {"openvino": make_openvino}


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
        PEERS[peer](arguments.root.resolve(), arguments.model.resolve())


if __name__ == "__main__":
    main()
