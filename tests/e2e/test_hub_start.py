"""From an empty cache with only MIM_MODEL_NAME: an open port, progress, answers; then offline, without a socket."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.hub_servers.model_hub import ModelHub
from tests.hub_servers.stand_in import Fault
from vllm_mxext import builtin
from vllm_mxext.bench.server_process import OUR_SERVER, ServerProcess

pytestmark = pytest.mark.e2e

NAME = "acme/tiny-1"
WAIT_S = 120

MANIFEST = f"""
schema: mx.hub/v1
model:
  name: {NAME}
  license: Apache-2.0
  config: {(builtin.model_path() / "config.json").read_text()}
sources: [hf://mirror/gone, hf://acme/tiny]
artifacts:
  - {{name: safetensors, format: safetensors}}
profiles:
  - name: needs-a-gpu
    tags: {{llm_engine: native, precision: bf16}}
    requires: {{device: {{kind: gpu, vendor: nvidia, min_memory: 900GiB}}}}
    engine_args: {{device: cuda}}
  - name: small-batches
    tags: {{llm_engine: native, precision: bf16}}
    engine_args: {{device: cpu, max-num-seqs: 7, max-model-len: 512}}
"""

NO_SOCKETS = """
import socket, sys
from vllm_mxext.cli.main import main

def refuse(*arguments, **options):
    raise AssertionError(f"a connection was opened: {arguments}")

look_up = socket.getaddrinfo
socket.getaddrinfo = lambda host, *rest, **more: look_up(host, *rest, **more) if host == "127.0.0.1" else refuse(host)
connect = socket.socket.connect
socket.socket.connect = lambda self, to: connect(self, to) if self.family == socket.AF_UNIX else refuse(to)
sys.exit(main(["serve", *sys.argv[1:]]))
"""


@pytest.fixture
def hub() -> Iterator[ModelHub]:
    with ModelHub() as hub:
        hub.add("acme/tiny", builtin.model_path())
        yield hub


def environment(tmp_path: Path, hub: ModelHub | None) -> dict[str, str]:
    manifest = tmp_path / "model_manifest.yaml"
    manifest.write_text(MANIFEST)
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("MIM_", "HF_", "VLLM_MXEXT_M"))
    }
    environ |= {
        "MIM_MODEL_NAME": NAME,
        "MIM_MANIFEST_PATH": str(manifest),
        "MIM_CACHE_PATH": str(tmp_path / "cache"),
        "HF_HOME": str(tmp_path / "no-hf"),
        "NO_PROXY": "*",
    }
    return environ | ({"MIM_OFFLINE": "1"} if hub is None else {"HF_ENDPOINT": hub.url})


def answer(url: str) -> str:
    body = {"model": NAME, "prompt": "2 + 2 =", "max_tokens": 8, "temperature": 0}
    response = httpx.post(f"{url}/v1/completions", json=body, timeout=WAIT_S)
    return str(response.raise_for_status().json()["choices"][0]["text"])


@pytest.mark.promise("HUB-START-1")
def test_a_server_downloads_its_model_shows_progress_answers_and_starts_again_offline(
    tmp_path: Path, hub: ModelHub
) -> None:
    hub.cdn.fails(Fault(stalls_at=100_000, times=None))
    environ = environment(tmp_path, hub) | {"VLLM_MXEXT_DOWNLOAD_STALL_TIMEOUT": "600"}
    with (
        ServerProcess(OUR_SERVER, tmp_path / "log", environ=environ) as process,
        httpx.Client(base_url=process.url, timeout=WAIT_S) as http,
    ):
        process.wait_for("/v1/health/live")
        live = http.get("/v1/health/live")
        assert live.status_code == 200
        progress: dict[str, int] = {"done_bytes": 0}
        while progress["done_bytes"] < 100_000:
            assert process.process.poll() is None
            (progress,) = http.get("/v1/hub/downloads").json()["data"] or [progress]
        assert progress["done_bytes"] < progress["total_bytes"]
        ready = http.get("/v1/health/ready")
        assert ready.status_code == 503
        assert NAME in ready.text
        assert "%" in ready.text
        assert http.post("/v1/completions", json={}).status_code == 503
        hub.cdn.heals()
        process.wait_for()
        text = answer(process.url)
        assert "4" in text
        metadata = http.get("/v1/metadata").json()
        (profile,) = [one for one in http.get("/v1/hub/profiles").json()["data"] if one["chosen"]]
        assert profile["name"] == "small-batches"
        assert metadata["selectedModelProfileId"] == profile["id"]
        (model,) = http.get("/v1/models").json()["data"]
        assert (model["id"], model["max_model_len"]) == (NAME, 512)
    log = (tmp_path / "log").read_text()
    assert "profile small-batches of acme/tiny-1" in log
    assert "environment MIM_MODEL_NAME" in log
    assert "mirror/gone" in log
    hub.stop()
    offline = [sys.executable, "-c", NO_SOCKETS]
    with ServerProcess(offline, tmp_path / "log2", environ=environment(tmp_path, None)) as process:
        process.wait_for()
        assert answer(process.url) == text


@pytest.mark.promise("HUB-START-2")
def test_a_model_that_nobody_has_ends_the_start_with_one_sentence(tmp_path: Path, hub: ModelHub) -> None:
    environ = environment(tmp_path, hub) | {"MIM_MODEL_NAME": "acme/tyni-1"}
    process = ServerProcess(OUR_SERVER, tmp_path / "log", environ=environ)
    with process:
        assert process.process.wait(WAIT_S) != 0
    last = (tmp_path / "log").read_text().strip().splitlines()[-1]
    assert "acme/tyni-1" in last
    assert "Traceback" not in (tmp_path / "log").read_text()
