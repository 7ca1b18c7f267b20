"""`mxext hub pull`, `download-to-cache`, `create-model-store` and `init`; the exit code of every cause."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.hub_servers.model_files import write_model
from tests.hub_servers.model_hub import ModelHub
from tests.hub_servers.stand_in import Fault
from tests.unit.cli.hub.conftest import MANIFEST, NAME, Run
from vllm_mxext import builtin
from vllm_mxext.cli.hub_commands import pulling
from vllm_mxext.hub.manifest.reading import read_manifest
from vllm_mxext.hub.store.model_store import ModelStore

WEIGHTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.mark.promise("HUB-CLI-1")
def test_pull_prints_the_folder_and_asks_for_something_newer(mxext: Run, hub: ModelHub, tmp_path: Path) -> None:
    printed = mxext("pull", "tiny")
    folder = Path(printed.out.strip())
    assert printed.code == 0
    assert (folder / WEIGHTS[0]).read_bytes() == (tmp_path / "origin" / WEIGHTS[0]).read_bytes()
    hub.add(NAME, write_model(tmp_path / "newer", seed=1))
    assert mxext("download-to-cache", "tiny").out == printed.out
    value = mxext("pull", "tiny", "--json").json
    (pulled,) = value["pulled"]
    assert (value["model"], value["profiles"]) == (NAME, ["cpu"])
    assert pulled["folder"] != str(folder)
    assert {file["path"] for file in pulled["snapshot"]["files"]} > set(WEIGHTS)


@pytest.mark.promise("HUB-CLI-1")
def test_a_model_that_no_manifest_has_is_pulled_again_when_it_is_newer(
    mxext: Run, hub: ModelHub, store: Path, tmp_path: Path
) -> None:
    newer = tmp_path / "newer"
    newer.mkdir()
    for file in builtin.model_path().iterdir():
        if file.name != "README.md":
            (newer / file.name).symlink_to(file)  # a hard link may cross no file system, and is for its owner only
    first = hub.add("acme/real", builtin.model_path())
    assert mxext("pull", "acme/real", "--quiet").code == 0
    (newer / "README.md").write_text("---\nlicense: mit\n---\nNewer.\n")
    second = hub.add("acme/real", newer)
    assert first != second
    assert mxext("download-to-cache", "acme/real", "--json").json["pulled"][0]["snapshot"]["revision"] == first
    assert mxext("pull", "acme/real", "--json").json["pulled"][0]["snapshot"]["revision"] == second
    offline = mxext("pull", "acme/real", "--offline")
    assert offline.code == 9
    start = mxext("config", "acme/real", "--offline", "--json").json
    assert second[:12] in next(row["origin"] for row in start["settings"] if row["name"] == "model")


@pytest.mark.promise("HUB-CLI-1")
def test_several_profiles_are_downloaded_whether_they_run_here_or_not(mxext: Run, store: Path) -> None:
    only = mxext("pull", "tiny", "--profile", "gpu", "--json").json
    assert [one["artifact"] for one in only["pulled"]] == ["weights"]
    two = mxext("download-to-cache", "tiny", "--profiles", "cpu", "cpu-small", "--json").json
    assert [one["artifact"] for one in two["pulled"]] == ["weights", "tables"]
    everything = mxext("download-to-cache", "tiny", "--all", "--json").json
    assert everything["profiles"] == ["cpu", "cpu-small", "gpu"]
    assert {one.name for one in ModelStore(store).snapshots()} == {f"{NAME}/weights", f"{NAME}/tables"}


@pytest.mark.promise("HUB-CLI-2")
def test_events_are_json_lines_on_standard_error_and_the_answer_alone_is_on_standard_output(mxext: Run) -> None:
    printed = mxext("pull", "tiny", "--json", "--json-events")
    events = [json.loads(line) for line in printed.err.splitlines()]
    assert [events[0]["phase"], events[-1]["phase"]] == ["listing", "done"]
    assert events[-1]["done_bytes"] == events[-1]["total_bytes"] > 0
    assert printed.json["model"] == NAME
    assert mxext("pull", "tiny", "--quiet").err == ""


@pytest.mark.promise("HUB-CLI-2")
def test_ctrl_c_says_that_the_command_goes_on_from_there(mxext: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pulling.mx_download, "pull", interrupted)
    printed = mxext("pull", "tiny")
    assert printed.code == 130
    assert printed.err.endswith("Interrupted; what has arrived is kept, and the same command goes on from there.\n")
    assert mxext("pull", "tiny", "--json").json["error"]["cause"] == "interrupted"


@pytest.mark.promise("HUB-CLI-1")
def test_a_model_store_is_a_folder_of_ordinary_files(mxext: Run, tmp_path: Path) -> None:
    target = tmp_path / "for others" / "tiny"
    printed = mxext("create-model-store", "tiny", "--output", target)
    assert (printed.code, printed.out) == (0, f"{target}\n")
    for name in (*WEIGHTS, "config.json"):
        assert (target / name).read_bytes() == (tmp_path / "origin" / name).read_bytes()
        assert not (target / name).is_symlink()
        assert (target / name).stat().st_nlink == 1
    assert [path.name for path in target.parent.iterdir()] == ["tiny"]
    again = mxext("create-model-store", "tiny", "--model-store", target, "--json")
    assert again.code == 1
    assert "is not empty" in again.json["error"]["message"]
    (tmp_path / "empty").mkdir()
    assert mxext("create-model-store", "tiny", "--output", tmp_path / "empty", "--json").json["size"] > 0


@pytest.mark.promise("HUB-CLI-1")
def test_a_damaged_stored_file_gets_into_no_folder(mxext: Run, store: Path, tmp_path: Path) -> None:
    folder = Path(mxext("pull", "tiny", "--quiet").out.strip())
    file = (folder / WEIGHTS[0]).resolve()
    file.chmod(0o644)
    file.write_bytes(b"x" * file.stat().st_size)
    printed = mxext("create-model-store", "tiny", "--output", tmp_path / "out")
    assert printed.code == 6
    assert "mxext hub repair" in printed.err
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


@pytest.mark.promise("HUB-CLI-1")
def test_init_writes_a_manifest_that_reads_back(mxext: Run, home: Path) -> None:
    printed = mxext("init", "tiny", "-o", "mine.yaml")
    assert printed.code == 0
    manifest = read_manifest(home / "mine.yaml")
    assert [profile.name for profile in manifest.models[0].profiles] == ["cpu", "cpu-small", "gpu"]
    again = mxext("init", "tiny", "-o", "mine.yaml", "--json")
    assert again.code == 2
    assert "left alone" in again.json["error"]["message"]
    assert mxext("init", builtin.model_path(), "-o", "folder.yaml", "--json").json["profiles"]
    entry = read_manifest(home / "folder.yaml").models[0]
    assert entry.sources == (builtin.model_path().as_uri(),)
    assert mxext("select", "--manifest", "folder.yaml").code == 0


@pytest.mark.promise("HUB-CLI-2")
@pytest.mark.parametrize(
    ("argv", "code", "cause"),
    [
        (["selct", "tiny"], 2, "usage"),
        (["select", "tny"], 2, "usage"),
        (["select", "tiny", "--modl"], 2, "usage"),
        (["select", "tiny", "--profile", "cpuu"], 2, "usage"),
        (["init"], 2, "usage"),
        (["import"], 2, "usage"),
        (["gc", "--keep", "-1"], 2, "usage"),
        (["gc", "tiny"], 2, "usage"),
        (["pull", "tiny", "--manifest", "broken.yaml"], 2, "manifest"),
        (["pull", "tiny", "--manifest", "nowhere.yaml"], 2, "manifest"),
        (["pull", "hf://acme/gone"], 4, "unauthorized"),
        (["pull", "tiny", "--revision", "v9"], 5, "not found"),
        (["verify", "tiny"], 5, "not found"),
        (["unpin", "tiny"], 5, "not found"),
        (["lock", "tiny"], 5, "not found"),
        (["select", "tiny", "--profile", "gpu"], 7, "no profile"),
        (["pull", "tiny", "--offline"], 9, "offline"),
        (["download-to-cache", "acme/gone", "--offline"], 9, "offline"),
        (["pull", "tiny", "--frozen"], 9, "not locked"),
    ],
)
def test_every_cause_has_its_exit_code_and_one_line(
    argv: list[str], code: int, cause: str, mxext: Run, home: Path
) -> None:
    (home / "broken.yaml").write_text(MANIFEST.replace("license:", "licens:"))
    printed = mxext(*argv)
    assert printed.code == code
    assert printed.out == ""
    *before, last = printed.err.splitlines()
    assert last.startswith("mxext: ")
    assert before in ([], [f"listing {NAME} (hf://{NAME})"])
    error = mxext(*argv, "--json").json["error"]
    assert error["cause"] == cause
    assert error["message"] in printed.err


@pytest.mark.promise("HUB-CLI-2")
def test_trouble_with_a_source_or_its_bytes_has_its_exit_code(
    mxext: Run, hub: ModelHub, home: Path, tmp_path: Path
) -> None:
    hub.cdn.fails(Fault(flips=10, times=None))
    assert mxext("pull", "tiny", "--quiet").code == 6
    hub.cdn.heals()
    (tmp_path / "origin" / "pytorch_model.bin").write_bytes(b"x")
    unsafe = MANIFEST.replace('include: ["*.json", "model-00001*"]', 'include: ["*.bin", "model-00001*"]')
    (home / "unsafe.yaml").write_text(unsafe)
    assert mxext("pull", "tiny", "--profile", "cpu-small", "--manifest", "unsafe.yaml", "--quiet").code == 6
    hub.add(NAME, tmp_path / "origin", is_gated=True)
    gated = mxext("pull", "tiny", "--quiet")
    assert gated.code == 4
    assert "HF_TOKEN" in gated.err


@pytest.mark.promise("HUB-CLI-2")
def test_what_nobody_answers_for_is_unreachable(mxext: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert mxext("pull", "tiny", "--quiet").code == 3


@pytest.mark.promise("HUB-CLI-2")
def test_a_store_that_cannot_be_written_or_is_full_is_code_8(
    mxext: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = mxext("create-model-store", "tiny", "--output", "/proc/models")
    assert full.code == 8
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10, total=20, used=10))
    assert mxext("create-model-store", "tiny", "--output", tmp_path / "out").code == 8
