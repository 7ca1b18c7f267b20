"""What a running server tells of its model: where it came from, why it runs as it does, and what else is stored."""

from __future__ import annotations

import hashlib

import pytest

from vllm_mxext import builtin
from vllm_mxext.engine.backends.fake import FakeEngineClient
from vllm_mxext.engine.client import EnginePhase, EngineStatus
from vllm_mxext.hub.hardware import Hardware, Host
from vllm_mxext.hub.judgement import Estimate, Judgement, Ranking, Selection, State
from vllm_mxext.hub.manifest.model import AdapterEntry, Artifact, Manifest, ModelEntry, Profile, Tags
from vllm_mxext.hub.progress import Phase, Progress
from vllm_mxext.hub.served_model import ServedModel
from vllm_mxext.hub.store.model_store import ModelStore
from vllm_mxext.hub.store.pins import Pin
from vllm_mxext.hub.store.snapshot import Snapshot, StoredFile
from vllm_mxext.server.context import package_version
from vllm_mxext.server.downloads import Downloads
from vllm_mxext.server.served_hub import ServedHub

pytestmark = pytest.mark.promise("HUB-SERVER-3")

SMALL, LARGE = Profile("cpu-bf16"), Profile("h100-fp8", ("big",), Tags(precision="fp8", tp=2, gpu="H100"))
ENTRY = ModelEntry(
    "qwen3-4b",
    license="Apache-2.0",
    license_url="https://example.org/license",
    revision="main",
    sources=("hf://Qwen/Qwen3-4B", "https://user:pa55w0rd@mirror.example/q"),
    artifacts=(Artifact("bf16"),),
    profiles=(LARGE, SMALL),
    adapters=(AdapterEntry("poet", "hf://me/poet"),),
)
LICENSE = "Apache License\nVersion 2.0 — …\n"
TEXT = "schema: mx.hub/v1\nsources: [https://user:pa55w0rd@mirror.example/q]\n"


@pytest.fixture
def served(tmp_path) -> ServedModel:
    folder, manifest = tmp_path / "files", tmp_path / "model_manifest.yaml"
    folder.mkdir()
    (folder / "License.txt").write_text(LICENSE)
    manifest.write_text(TEXT)
    chosen = Judgement(SMALL, State.REDUCED, ("It fits with 8192 tokens.",),
                       Estimate(10, 20, 3, 4, 5, 6, 7, 8192, 2.5), suggested={"max-model-len": 8192})  # fmt: skip
    lost = Judgement(LARGE, State.INCOMPATIBLE, ("It needs 2 NVIDIA devices; there are none.",))
    rankings = (Ranking(chosen, 1, "It is the only one that can run."), Ranking(lost, None, "It cannot run."))
    return ServedModel(
        ENTRY,
        Manifest((ENTRY,), "environment MIM_MANIFEST_PATH", str(manifest)),
        folder,
        Hardware("this machine", Host(num_cores=2)),
        Selection(ENTRY, "memory", "flag --selection-goal", chosen, rankings, ("States come first.",)),
        Snapshot("qwen3-4b", "abc123", "https://user:pa55w0rd@mirror.example/q", (), folder),
    )


@pytest.fixture
async def ask(serve, served, tmp_path):
    """`await ask(path)`: what a server that runs a chosen profile answers."""
    server = await serve(hub=ServedHub(served.folder, "x", served, tmp_path / "store"))

    async def get(path: str) -> dict:
        response = await server.http.get(path)
        assert response.status_code == 200, response.text
        assert "pa55w0rd" not in response.text
        return response.json()

    return get


async def test_metadata_has_the_fields_of_nim(ask, served):
    assert await ask("/v1/metadata") == {
        "assetInfo": ["hf://me/poet"],
        "licenseInfo": await ask("/v1/license"),
        "modelInfo": [{"modelUrl": "https://…@mirror.example/q@abc123", "shortName": "qwen3-4b"}],
        "repository_override": "https://…@mirror.example/q",
        "version": package_version(),
        "selectedModelProfileId": SMALL.id,
    }


async def test_the_license_comes_with_its_text(ask, served):
    assert await ask("/v1/license") == {
        "name": "Apache-2.0",
        "path": str(served.folder / "License.txt"),
        "sha": hashlib.sha1(LICENSE.encode()).hexdigest(),
        "size": len(LICENSE),
        "url": "https://example.org/license",
        "type": "file",
        "content": LICENSE,
    }


async def test_a_model_without_a_license_file_has_an_empty_text(ask, served):
    (served.folder / "License.txt").unlink()
    answer = await ask("/v1/license")
    assert (answer["name"], answer["path"], answer["sha"], answer["size"]) == ("Apache-2.0", "", "", 0)


async def test_version_names_release_and_api(ask):
    assert await ask("/v1/version") == {"release": package_version(), "api": package_version()}


async def test_the_manifest_is_there_as_text_and_as_data_without_secrets(ask, served):
    answer = await ask("/v1/manifest")
    assert answer["manifest_file"] == TEXT.replace("user:pa55w0rd", "…")
    assert (answer["schema"], answer["origin"]) == ("mx.hub/v1", "environment MIM_MANIFEST_PATH")
    assert answer["path"] == served.manifest.path
    model = answer["model"]
    assert model["sources"] == ["hf://Qwen/Qwen3-4B", "https://…@mirror.example/q"]
    assert [(profile["name"], profile["id"]) for profile in model["profiles"]] == [
        ("h100-fp8", LARGE.id), ("cpu-bf16", SMALL.id),
    ]  # fmt: skip
    assert model["profiles"][0]["tags"]["tp"] == 2


async def test_profiles_come_with_place_state_reasons_estimate_and_rules(ask):
    answer = await ask("/v1/hub/profiles")
    assert (answer["model"], answer["chosen"], answer["chosen_id"]) == ("qwen3-4b", "cpu-bf16", SMALL.id)
    assert (answer["goal"], answer["goal_origin"], answer["rules"]) == (
        "memory", "flag --selection-goal", ["States come first."],
    )  # fmt: skip
    assert answer["hardware"]["host"]["num_cores"] == 2
    first, second = answer["data"]
    assert (first["name"], first["place"], first["state"], first["can_run"]) == ("cpu-bf16", 1, "reduced", True)
    assert (first["reasons"], first["suggested"]) == (["It fits with 8192 tokens."], {"max-model-len": 8192})
    assert (first["estimate"]["device_total"], first["estimate"]["max_model_len"]) == (42, 8192)
    assert (second["place"], second["state"], second["why"]) == (None, "incompatible", "It cannot run.")
    assert second["estimate"] is None
    assert (first["chosen"], second["chosen"]) == (True, False)
    assert second["profile"]["tags"]["gpu"] == "H100"


async def test_a_folder_that_tells_nothing_is_served_under_its_name(server):
    metadata = (await server.http.get("/v1/metadata")).json()
    assert (metadata["modelInfo"][0]["shortName"], metadata["selectedModelProfileId"]) == ("fake-model", "")
    manifest = (await server.http.get("/v1/manifest")).json()
    assert (manifest["manifest_file"], manifest["path"], manifest["model"]["name"]) == ("", None, "fake-model")
    assert (await server.http.get("/v1/hub/downloads")).json() == {"object": "list", "data": []}
    cache = (await server.http.get("/v1/hub/cache")).json()
    assert (cache["folder"], cache["data"]) == (None, [])


async def test_the_cache_lists_what_is_stored(ask, tmp_path):
    assert (await ask("/v1/hub/cache"))["data"] == []
    store = ModelStore(tmp_path / "store", clock=lambda: 1234.5)
    weights, config = _store(store, "model.safetensors", b"x" * 1000), _store(store, "config.json", b"{}")
    store.publish("qwen3-4b", "r1", "hf://Qwen/Qwen3-4B", [weights, config])
    store.publish("qwen3-4b", "r2", "hf://Qwen/Qwen3-4B", [weights], asked_revision="main")
    store.pins.add(Pin("qwen3-4b", "r1"))

    answer = await ask("/v1/hub/cache")

    assert (answer["folder"], answer["size_bytes"]) == (str(tmp_path / "store"), 1002)
    assert answer["disk_free_bytes"] > 0
    assert answer["pins"] == [{"name": "qwen3-4b", "revision": "r1"}]
    first, second = answer["data"]
    assert first == {
        "name": "qwen3-4b", "revision": "r1", "asked_revision": "", "uri": "hf://Qwen/Qwen3-4B",
        "folder": first["folder"], "size_bytes": 1002, "num_files": 2, "created": 1234, "current": False,
        "pinned": True,
    }  # fmt: skip
    assert first["folder"] == str(store.snapshot("qwen3-4b", "r1").folder)
    assert (second["revision"], second["current"], second["pinned"]) == ("r2", True, False)


async def test_a_store_that_cannot_be_read_is_said_to_be(serve, served, tmp_path):
    (tmp_path / "store").write_text("no folder")
    server = await serve(hub=ServedHub(served.folder, "x", served, tmp_path / "store"))
    response = await server.http.get("/v1/hub/cache")
    assert response.status_code == 500
    assert str(tmp_path / "store") in response.json()["error"]["message"]


async def test_what_was_downloaded_stays_in_downloads_metrics_and_health(serve, served):
    times_s = iter((0.0, 3.0, 5.0))
    downloads = Downloads(lambda: next(times_s))
    for phase in (Phase.DOWNLOADING, Phase.VERIFYING, Phase.DONE):
        downloads.listen(Progress("qwen3-4b", phase, 500, 500, 2, 2))
    engine = FakeEngineClient(ready_on_start=False)
    server = await serve(engine, hub=ServedHub(served.folder, "x", served, None, downloads))

    (while_loading,) = (await server.http.get("/v1/hub/downloads")).json()["data"]
    assert (while_loading["phase"], while_loading["fraction"]) == ("done", 1.0)
    assert await server.figure('vllm_mxext:hub_download_bytes{model_name="qwen3-4b"}') == 500
    assert await server.figure('vllm_mxext:hub_download_phase{model_name="qwen3-4b",phase="done"}') == 1

    engine.set_status(EngineStatus(EnginePhase.READY, 1.0, phase_seconds=(("loading", 0.5),)))
    report = (await server.http.get("/health")).json()
    assert report["phase_seconds"] == {"downloading": 3.0, "verifying": 2.0, "loading": 0.5}


def _store(store: ModelStore, path: str, content: bytes) -> StoredFile:
    digest = hashlib.sha256(content).hexdigest()
    file = store.folder / "incoming"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    store.blobs.adopt(file, digest, (digest,))
    return StoredFile(path, len(content), digest)


async def test_of_a_plain_folder_profiles_are_judged_when_somebody_asks(serve):
    server = await serve(hub=ServedHub(builtin.model_path(), "built-in"))
    metadata = (await server.http.get("/v1/metadata")).json()
    assert metadata["modelInfo"][0]["modelUrl"] == builtin.model_path().as_uri()
    assert metadata["selectedModelProfileId"] == "", "nobody selected one"
    profiles = (await server.http.get("/v1/hub/profiles")).json()
    (chosen,) = [one for one in profiles["data"] if one["chosen"]]
    assert (chosen["name"], chosen["id"]) == (profiles["chosen"], profiles["chosen_id"])
    assert (chosen["place"], chosen["state"], chosen["profile"]["device"]["kind"]) == (1, "runnable", "cpu")
    assert chosen["estimate"]["weights"] > 0
    assert profiles["rules"]
    assert (await server.http.get("/v1/hub/profiles")).json() == profiles
