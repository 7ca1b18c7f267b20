"""A machine of one's own: an empty home, a store, a manifest, and a hub of models on 127.0.0.1."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.hub_servers.model_files import write_model
from tests.hub_servers.model_hub import ModelHub
from vllm_mxext.cli.main import main
from vllm_mxext.hub.hardware import Hardware, Host

NAME = "acme/tiny"

MANIFEST = """\
schema: mx.hub/v1
model:
  name: acme/tiny
  aliases: [tiny]
  license: apache-2.0
  config: {architectures: [LlamaForCausalLM], model_type: llama, vocab_size: 320, hidden_size: 64,
           intermediate_size: 96, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2,
           max_position_embeddings: 2048}
sources: ["hf://acme/tiny"]
artifacts:
  - {name: weights, format: safetensors}
  - {name: tables, format: safetensors, include: ["*.json", "model-00001*"]}
profiles:
  - name: cpu
    aliases: [plain]
    artifact: weights
    tags: {llm_engine: native, precision: bf16}
    engine_args: {device: cpu, max-num-seqs: 3}
  - name: cpu-small
    artifact: tables
    tags: {llm_engine: native, precision: int8}
    fallback: true
  - name: gpu
    artifact: weights
    tags: {llm_engine: native, precision: bf16}
    requires: {device: {kind: gpu, vendor: nvidia, arch: [">=sm_80"]}}
    engine_args: {device: cuda}
"""

BIG_MACHINE = """\
name: the big one
host: {cores: 64, memory: 512GiB, disk_available: 4TiB}
devices: [{vendor: nvidia, name: NVIDIA H100 80GB HBM3, count: 8, arch: sm_90, memory: 80GiB}]
"""


MACHINE = Hardware(
    "this machine", Host(num_cores=4, num_threads=8, memory_bytes=32 << 30, memory_available_bytes=24 << 30)
)
"""What is found on every machine that the tests run on."""


@dataclass(frozen=True)
class Printed:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Printed]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[ModelHub]:
    with ModelHub() as running:
        running.add(NAME, write_model(tmp_path / "origin"))
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def home(tmp_path: Path, store: Path, hub: ModelHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home folder as the working folder, and variables that lead to the hub and the store."""
    import stamina

    home = tmp_path / "home"
    home.mkdir()
    (home / "model_manifest.yaml").write_text(MANIFEST)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    values = {
        "HOME": home, "XDG_CONFIG_HOME": home / ".config", "XDG_CACHE_HOME": home / ".cache", "HF_HOME": home / "hf",
        "MODELSCOPE_CACHE": home / "modelscope", "HF_ENDPOINT": hub.url, "NO_PROXY": "*",
        "VLLM_MXEXT_DOWNLOAD_DIR": store, "MIM_MANIFEST_PATH": home / "model_manifest.yaml",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(home)
    for module in ("hardware_inspect", "startup"):
        monkeypatch.setattr(f"vllm_mxext.hub.{module}.inspect_hardware", lambda *_, **__: MACHINE)
    stamina.set_active(False)
    yield home
    stamina.set_active(True)


@pytest.fixture
def mxext(home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `mxext hub ...` in this process."""

    def run(*argv: str | Path) -> Printed:
        capsys.readouterr()
        code = main(["hub", *map(str, argv)])
        printed = capsys.readouterr()
        return Printed(code, printed.out, printed.err)

    return run
