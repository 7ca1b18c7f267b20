"""Ctrl-C in the middle of `mxext hub pull`, as a process of its own: it ends at once, and goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.hub_servers.model_files import write_model
from tests.hub_servers.model_hub import ModelHub
from tests.hub_servers.stand_in import Fault

pytestmark = [pytest.mark.e2e, pytest.mark.promise("HUB-CLI-2")]

NAME = "acme/tiny"
CHUNK_BYTES = 8 * 2**20
WAIT_S = 60

MANIFEST = f"""
schema: mx.hub/v1
model:
  name: {NAME}
  config: {{architectures: [LlamaForCausalLM], model_type: llama, vocab_size: 320, hidden_size: 64,
            intermediate_size: 96, num_hidden_layers: 2, num_attention_heads: 4, max_position_embeddings: 2048}}
sources: [hf://{NAME}]
artifacts: [{{name: weights, format: safetensors}}]
profiles: [{{name: cpu, tags: {{llm_engine: native}}}}]
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[ModelHub]:
    with ModelHub() as hub:
        hub.add(NAME, write_model(tmp_path / "origin", weight_bytes=6 * CHUNK_BYTES))
        yield hub


def start(command: list[str], tmp_path: Path, hub: ModelHub) -> subprocess.Popen[str]:
    (tmp_path / "manifest.yaml").write_text(MANIFEST)
    environ = os.environ | {
        "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "NO_PROXY": "*",
        "MIM_MANIFEST_PATH": str(tmp_path / "manifest.yaml"), "MIM_CACHE_PATH": str(tmp_path / "cache"),
    }  # fmt: skip
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *command], env=environ, stdout=pipe, stderr=pipe, text=True)


def wait_for_bytes(events: IO[str], num_bytes: int) -> None:
    """Reads events until so many bytes have come."""
    for line in events:
        if json.loads(line)["done_bytes"] >= num_bytes:
            return
    raise AssertionError("the download has ended")


def test_ctrl_c_ends_a_download_at_once_and_the_same_command_goes_on_from_there(tmp_path: Path, hub: ModelHub) -> None:
    command = ["-c", "import sys; from vllm_mxext.cli.main import main; sys.exit(main(sys.argv[1:]))", "hub", "pull"]
    hub.cdn.fails(Fault(stalls_at=2 * CHUNK_BYTES, times=None))
    process = start([*command, NAME, "--json-events"], tmp_path, hub)
    assert process.stderr is not None
    wait_for_bytes(process.stderr, 2 * CHUNK_BYTES)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=WAIT_S)
    assert (process.returncode, out) == (130, "")
    last = err.splitlines()[-1]
    assert last == "mxext: Interrupted; what has arrived is kept, and the same command goes on from there."
    assert not list((tmp_path / "cache").rglob("snapshot.json"))
    hub.cdn.heals()
    del hub.cdn.asked[:]
    again = start([*command, NAME, "--json"], tmp_path, hub)
    out, err = again.communicate(timeout=WAIT_S)
    assert again.returncode == 0, err
    (pulled,) = json.loads(out)["pulled"]
    for name in ("model-00001-of-00002.safetensors", "config.json"):
        assert (Path(pulled["folder"]) / name).read_bytes() == (tmp_path / "origin" / name).read_bytes()
    starts = [int(asked.headers.get("range", "bytes=0-")[6:].partition("-")[0]) for asked in hub.cdn.asked]
    assert sum(start >= CHUNK_BYTES for start in starts) > 0


def test_the_module_pulls_prints_the_folder_and_has_the_same_exit_codes(tmp_path: Path, hub: ModelHub) -> None:
    module = ["-m", "vllm_mxext.hub.mx_download"]
    process = start([*module, NAME], tmp_path, hub)
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, err
    assert (Path(out.strip()) / "config.json").is_file()
    process = start([*module, "acme/other", "--offline"], tmp_path, hub)
    out, err = process.communicate(timeout=WAIT_S)
    assert (process.returncode, out) == (9, "")
    assert err.count("\n") == 1
    process = start(["-m", "vllm_mxext.hub.hardware_inspect", "--json"], tmp_path, hub)
    out, _ = process.communicate(timeout=WAIT_S)
    assert json.loads(out)["host"]["num_cores"] >= 1
