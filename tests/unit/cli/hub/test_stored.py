"""`mxext hub list`, `verify`, `repair`, `gc`, `rm`, `pin`, `unpin`, `lock`, `export` and `import`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.hub_servers.model_files import write_model
from tests.hub_servers.model_hub import ModelHub
from tests.unit.cli.hub.conftest import NAME, Run
from vllm_mxext import builtin
from vllm_mxext.hub.store.lock_file import read_lock_file
from vllm_mxext.hub.store.model_store import ModelStore

pytestmark = pytest.mark.promise("HUB-CLI-1")

STORED = f"{NAME}/weights"
WEIGHTS = "model-00001-of-00002.safetensors"
LONG_AGO_S = 1_000_000_000


def damage(file: Path) -> None:
    """Changes a byte of a stored file."""
    file = file.resolve()
    content = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])


@pytest.fixture
def pulled(mxext: Run) -> Path:
    return Path(mxext("pull", "tiny", "--quiet").out.strip())


def test_list_shows_what_is_stored(mxext: Run, store: Path) -> None:
    assert mxext("list").out == f"Nothing is stored in '{store}'.\n"
    assert mxext("list", "tiny").out == f"Nothing of tiny is stored in '{store}'.\n"
    folder = mxext("pull", "tiny", "--quiet").out.strip()
    printed = mxext("list").out
    for part in (STORED, folder[-40:-28], "current", f"hf://{NAME}", "1 revision, "):
        assert part in printed
    (entry,) = mxext("list", "--json").json["models"]
    assert (entry["name"], entry["folder"], entry["is_current"], entry["is_pinned"]) == (STORED, folder, True, False)
    (entry,) = mxext("list", "tiny", "--json").json["models"]
    assert sum(file["size"] for file in entry["files"]) == entry["size"]


def test_damage_is_found_and_only_it_is_downloaded_again(mxext: Run, pulled: Path, hub: ModelHub) -> None:
    assert mxext("verify").code == 0
    damage(pulled / WEIGHTS)
    assert mxext("verify", "tiny", "--quick").code == 0
    printed = mxext("verify", "tiny")
    assert printed.code == 6
    assert f"{WEIGHTS} is damaged" in printed.out
    (fault,) = mxext("verify", "--json").json["faults"]
    assert (fault["model"], fault["path"], fault["state"]) == (STORED, WEIGHTS, "damaged")
    del hub.cdn.asked[:]
    repaired = mxext("repair", "tiny", "--json")
    assert [one["path"] for one in repaired.json["repaired"]] == [WEIGHTS]
    assert len({asked.path for asked in hub.cdn.asked}) == 1
    assert mxext("verify").code == 0
    assert mxext("repair").out == "Nothing is damaged.\n"


def test_what_its_source_has_no_more_cannot_be_repaired(
    mxext: Run, pulled: Path, hub: ModelHub, tmp_path: Path
) -> None:
    damage(pulled / WEIGHTS)
    hub.models.clear()
    hub.add(NAME, write_model(tmp_path / "other", seed=3))
    assert mxext("repair", "--quiet").code == 5
    assert mxext("repair", "--quiet", "--offline").code == 9


def test_gc_tells_first_and_removes_what_nobody_needs_and_nobody_has_pinned(
    mxext: Run, pulled: Path, hub: ModelHub, store: Path, tmp_path: Path
) -> None:
    hub.add(NAME, write_model(tmp_path / "newer", seed=1))
    mxext("pull", "tiny", "--quiet")
    for file in store.rglob("*"):
        os.utime(file, (LONG_AGO_S, LONG_AGO_S), follow_symlinks=False)
    snapshots = ModelStore(store).snapshots()
    for snapshot in snapshots:
        text = (snapshot.folder / "snapshot.json").read_text()
        (snapshot.folder / "snapshot.json").write_text(text.replace(str(snapshot.created_s), str(LONG_AGO_S)))
    assert mxext("pin", "tiny", "--revision", pulled.name).code == 0
    assert mxext("gc", "--keep", "0", "--dry-run", "--json").json["snapshots"] == []
    assert mxext("unpin", "tiny", "--revision", pulled.name).code == 0
    told = mxext("gc", "--keep", "0", "--dry-run", "--json").json
    assert [one["revision"] for one in told["snapshots"]] == [pulled.name]
    assert pulled.exists()
    assert "Removed 1 revision" in mxext("gc", "--keep", "0").out
    assert not pulled.exists()
    assert mxext("verify").code == 0


@pytest.mark.promise("HUB-RM-1")
def test_rm_removes_a_model_or_one_revision_unless_it_is_pinned(
    mxext: Run, pulled: Path, hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, write_model(tmp_path / "newer", seed=1))
    newer = Path(mxext("pull", "tiny", "--quiet").out.strip())
    removed = mxext("rm", "tiny", "--revision", pulled.name[:8], "--json").json
    assert [one["revision"] for one in removed["removed"]] == [pulled.name]
    assert removed["num_bytes"] > 0
    assert (pulled.exists(), mxext("verify").code) == (False, 0)
    mxext("pin", "tiny")
    refused = mxext("rm", "tiny")
    assert (refused.code, "is pinned" in refused.err, newer.exists()) == (1, True, True)
    assert f"Removed {STORED} at {newer.name[:12]}" in mxext("rm", "tiny", "--force").out
    assert mxext("list", "--json").json["bytes_on_disk"] == 0
    assert mxext("rm", "tiny").code == 5
    monkeypatch.setenv("MIM_MODEL_NAME", "tiny")
    assert mxext("rm").code == 2


def test_the_name_of_an_organisation_is_not_that_of_its_models(mxext: Run, pulled: Path, hub: ModelHub) -> None:
    hub.add("acme/real", builtin.model_path())
    mxext("pull", "acme/real", "--quiet")
    assert [mxext(command, "acme").code for command in ("verify", "pin", "rm")] == [5, 5, 5]
    assert len(mxext("list", "--json").json["models"]) == 2


def test_pins_are_of_a_model_or_of_one_revision(mxext: Run, pulled: Path) -> None:
    assert mxext("pin", "tiny").out == f"{STORED} stays.\n"
    assert mxext("pin", "tiny", "--revision", pulled.name[:8], "--json").json["pins"] == [
        {"name": STORED, "revision": None},
        {"name": STORED, "revision": pulled.name},
    ]
    assert mxext("list", "--json").json["models"][0]["is_pinned"]
    assert mxext("unpin", "tiny", "--json").json["pins"] == [{"name": STORED, "revision": pulled.name}]
    assert mxext("unpin", "tiny").code == 5


def test_lock_pins_what_is_stored_and_frozen_holds_to_it(
    mxext: Run, pulled: Path, hub: ModelHub, home: Path, tmp_path: Path
) -> None:
    printed = mxext("lock", "tiny", "--json")
    assert printed.code == 0
    assert read_lock_file(home / "model.lock").revision(STORED) == pulled.name
    assert {file["path"] for file in printed.json["models"][0]["files"]} > {WEIGHTS}
    assert mxext("download-to-cache", "tiny", "--frozen", "--quiet").code == 0
    hub.add(NAME, write_model(tmp_path / "newer", seed=1))
    newer = Path(mxext("pull", "tiny", "--quiet").out.strip())
    assert newer != pulled
    assert mxext("download-to-cache", "tiny", "--frozen", "--quiet").out == f"{pulled}\n"
    refused = mxext("download-to-cache", "tiny", "--frozen", "--revision", newer.name, "--quiet")
    assert (refused.code, f"{pulled.name} is pinned" in refused.err) == (9, True)
    assert mxext("pull", "tiny", "--profile", "cpu-small", "--frozen", "--quiet").code == 9
    assert mxext("lock", "tiny", "hf://acme/tiny", "--lock-file", "other.lock").code == 0
    assert read_lock_file(home / "other.lock").revision(STORED) == newer.name


@pytest.mark.promise("HUB-LOCK-2")
def test_what_is_pinned_is_downloaded_although_the_source_has_something_newer(
    mxext: Run, pulled: Path, hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mxext("lock", "tiny").code == 0
    hub.add(NAME, tmp_path / "origin", "v1")  # keeps the old commit
    hub.add(NAME, write_model(tmp_path / "newer", seed=1))
    monkeypatch.setenv("VLLM_MXEXT_DOWNLOAD_DIR", str(tmp_path / "elsewhere"))
    printed = mxext("pull", "tiny", "--frozen", "--quiet")
    assert (printed.code, Path(printed.out.strip()).name) == (0, pulled.name)


def test_a_bundle_brings_a_model_to_a_machine_without_a_network(
    mxext: Run, hub: ModelHub, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("acme/real", builtin.model_path())
    hub.add(NAME, builtin.model_path())
    mxext("pull", "tiny", "--quiet")
    mxext("pull", "acme/real", "--quiet")
    bundle = tmp_path / "models.tar"
    printed = mxext("export", "tiny", "acme/real", "-o", bundle, "--json")
    assert [one["name"] for one in printed.json["models"]] == [STORED, "acme/real"]
    hub.stop()
    monkeypatch.setenv("VLLM_MXEXT_DOWNLOAD_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("MIM_OFFLINE", "1")
    assert mxext("select", "acme/real").code == 9
    assert mxext("import", bundle).code == 0
    assert mxext("config", "acme/real", "--json").json["is_stored"]
    assert mxext("download-to-cache", "tiny").code == 0
    bundle.write_bytes(bundle.read_bytes()[:100_000])
    monkeypatch.setenv("VLLM_MXEXT_DOWNLOAD_DIR", str(tmp_path / "third"))
    assert mxext("import", bundle).code in (1, 6)
    assert mxext("list", "--json").json["models"] == []
