"""The stand-ins speak the protocols that the hubs' own packages use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.hub_servers.model_files import write_model
from tests.hub_servers.model_hub import ModelHub


def tree(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_relative_to(folder / ".cache")]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files if file.name[0] != "."}


@pytest.mark.optional
def test_the_hugging_face_package_downloads_from_the_stand_in(tmp_path: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    model = write_model(tmp_path / "model")
    with ModelHub() as hub:
        commit = hub.add("acme/tiny", model, is_private=True)
        hub.tokens["hf_good"] = True
        found = huggingface_hub.snapshot_download(
            "acme/tiny", endpoint=hub.url, token="hf_good", cache_dir=tmp_path / "cache", max_workers=2
        )
        assert Path(found).name == commit
        assert tree(Path(found)) == tree(model)
        assert any("repos" in path for path in hub.cdn.paths())


@pytest.mark.optional
def test_the_hugging_face_package_is_refused_a_gated_model_by_the_stand_in(tmp_path: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    with ModelHub() as hub:
        hub.add("acme/gated", write_model(tmp_path / "model"), is_gated=True)
        with pytest.raises(huggingface_hub.errors.GatedRepoError):
            huggingface_hub.hf_hub_download(
                "acme/gated", "config.json", endpoint=hub.url, token=False, cache_dir=tmp_path / "cache"
            )


@pytest.mark.optional
def test_the_modelscope_package_downloads_from_the_stand_in(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("modelscope")
    model = write_model(tmp_path / "model")
    for name in ("MODELSCOPE_HOME", "MODELSCOPE_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    with ModelHub() as hub:
        hub.add("acme/tiny", model, is_private=True)
        hub.tokens["ms-good"] = True
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-good")
        from modelscope import snapshot_download

        found = snapshot_download("acme/tiny", local_dir=str(tmp_path / "local"))
        assert tree(Path(found)) == tree(model)
