"""Which manifest counts, what its models are called, and what the packaged one has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.hub.manifest_texts import parse_manifest
from vllm_mxext import builtin
from vllm_mxext.config.hub import HubConfig
from vllm_mxext.config.model_spec import SUPPORTED_ARCHITECTURES
from vllm_mxext.errors import ManifestError
from vllm_mxext.hub.manifest.lookup import find_manifest, find_model, origin_of, packaged_manifest, unknown_model
from vllm_mxext.hub.manifest.model import Manifest
from vllm_mxext.hub.manifest.writing import write_manifest
from vllm_mxext.hub.model_shape import parse_shape

pytestmark = pytest.mark.promise("HUB-MANIFEST-4")


def write(path: Path, name: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"schema: mx.hub/v1\nmodel: {{name: {name}}}\n")
    return path


@pytest.fixture(scope="module")
def packaged() -> Manifest:
    return packaged_manifest()


def test_places_are_looked_at_in_their_order(tmp_path: Path) -> None:
    config = HubConfig(tmp_path / "models")
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    places = [
        tmp_path / "mim/config/model_manifest.yaml",
        tmp_path / "etc/mim/config/model_manifest.yaml",
        tmp_path / "config/vllm_mxext/model_manifest.yaml",
    ]
    manifest = find_manifest(config, environ, tmp_path)
    assert manifest.origin == "the packaged manifest"
    assert manifest.notes == (f"There is no manifest at {', '.join(map(str, places))}.",)
    origins = [f"file {places[0]}", f"file {places[1]}", f"the user's file {places[2]}"]
    for index in (2, 1, 0):
        write(places[index], f"place-{index}")
        manifest = find_manifest(config, environ, tmp_path)
        assert (manifest.models[0].name, manifest.origin) == (f"place-{index}", origins[index])
        assert manifest.path == str(places[index])
        looked_at = ", ".join(map(str, places[:index]))
        assert manifest.notes == ((f"There is no manifest at {looked_at}.",) if index else ())
    asked = write(tmp_path / "asked.yaml", "asked")
    config = replace(config, manifest=asked, manifest_origin="environment MIM_MANIFEST_PATH")
    manifest = find_manifest(config, environ, tmp_path)
    assert (manifest.models[0].name, manifest.origin, manifest.notes) == (
        "asked", f"file {asked} (environment MIM_MANIFEST_PATH)", ()
    )  # fmt: skip


def test_without_a_configuration_folder_it_is_the_one_in_the_home_folder(tmp_path: Path) -> None:
    write(tmp_path / ".config/vllm_mxext/model_manifest.yaml", "mine")
    manifest = find_manifest(HubConfig(tmp_path), {"HOME": str(tmp_path)}, tmp_path)
    assert manifest.models[0].name == "mine"


def test_a_broken_manifest_is_not_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "mim/config/model_manifest.yaml", "'")
    with pytest.raises(ManifestError, match=str(path)):
        find_manifest(HubConfig(tmp_path), {"HOME": str(tmp_path)}, tmp_path)


def test_models_are_found_by_name_and_alias_in_any_case(packaged: Manifest) -> None:
    for name in ("Qwen/Qwen3-8B", "qwen3-8b", "qwen/QWEN3-8b"):
        entry = find_model(packaged, name)
        assert entry is not None
        assert entry.name == "Qwen/Qwen3-8B"
    assert find_model(packaged, "Qwen/Qwen3") is None


def test_models_that_a_manifest_does_not_have_come_from_the_packaged_one(tmp_path: Path, packaged: Manifest) -> None:
    mine = parse_manifest("schema: mx.hub/v1\nmodel: {name: Qwen/Qwen3-8B, description: mine}", origin="file x")
    entry, other = find_model(mine, "Qwen/Qwen3-8B"), find_model(mine, "mx-tiny")
    assert entry is not None
    assert other is not None
    assert (entry.description, origin_of(mine, entry)) == ("mine", "file x")
    assert origin_of(mine, other) == "the packaged manifest, because file x does not name the model"
    assert origin_of(packaged, other) == "the packaged manifest"


def test_an_unknown_name_gets_the_nearest_one(packaged: Manifest) -> None:
    assert unknown_model(packaged, "qwen/qwen3-8") == (
        "There is no model 'qwen/qwen3-8' in the packaged manifest; did you mean Qwen/Qwen3-8B?"
    )
    mine = parse_manifest("schema: mx.hub/v1\nmodel: {name: a}", origin="file x")
    assert unknown_model(mine, "zzzzzz") == (
        "There is no model 'zzzzzz' in file x or the packaged manifest; name one of them, a folder, or a URI such as "
        "hf://ORG/NAME."
    )


@pytest.mark.parametrize("path", ["/models/none", "./none", "../none", "~/none"])
def test_a_path_where_nothing_is_is_not_looked_for_among_names(packaged: Manifest, path: str) -> None:
    assert unknown_model(packaged, path) == (
        f"There is no model '{path}': nothing is at this path; give the folder of a checkpoint."
    )


def test_the_packaged_manifest_counts_the_parameters_that_its_configs_make(packaged: Manifest) -> None:
    for entry in packaged.models:
        counted = parse_shape(entry.config).num_parameters
        assert counted == pytest.approx(entry.num_parameters, rel=0.002), entry.name


def test_the_packaged_manifest_knows_the_built_in_model(packaged: Manifest) -> None:
    entry = find_model(packaged, builtin.BUILTIN_MODEL_NAME)
    assert entry is not None
    assert entry.sources == (builtin.model_path().as_uri(),)
    assert {adapter.name: adapter.uri for adapter in entry.adapters} == {
        name: str(builtin.adapter_path(name)) for name in builtin.adapter_names()
    }


def test_the_packaged_manifest_runs_natively_what_the_engine_can_run(packaged: Manifest) -> None:
    assert len(packaged.models) >= 13
    assert packaged.notes == ()
    for entry in packaged.models:
        is_supported = entry.config["architectures"][0] in SUPPORTED_ARCHITECTURES
        engines = {profile.tags.llm_engine for profile in entry.profiles}
        assert ("native" in engines) == is_supported, entry.name
        assert {profile.artifact for profile in entry.profiles} <= {artifact.name for artifact in entry.artifacts}
        assert entry.license
        assert len({profile.id for profile in entry.profiles}) == len(entry.profiles)


def test_what_is_written_reads_back_equal(packaged: Manifest) -> None:
    assert parse_manifest(write_manifest(packaged)).models == packaged.models
    for entry in packaged.models:
        assert parse_manifest(write_manifest(Manifest((entry,), ""))).models == (entry,)


def test_texts_that_look_like_something_else_are_written_as_texts(packaged: Manifest) -> None:
    entry = replace(
        packaged.models[0],
        revision="12e3",
        family="0o17",
        license="yes",
        license_url="1_0",
        description="a: b\nc\x07 # d",
        config={"a": "1e5", "b": "~", "c": None, "d": 1e-7, "e": "12:30", "f": "", "g": "2020-01-01", "h": ".5"},
    )
    assert parse_manifest(write_manifest(Manifest((entry,), ""))).models == (entry,)
