"""What a start asks of the hub: entry, profile, files, flags; and everything else that flags name."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.hub_servers.model_hub import ModelHub
from vllm_mxext import builtin
from vllm_mxext.config.app import AppConfig, parse_serve_args
from vllm_mxext.config.hub import without_effect
from vllm_mxext.config.resolve import resolve
from vllm_mxext.engine.engine_args import EngineArgs
from vllm_mxext.errors import (
    ConfigError,
    DownloadError,
    HubCause,
    MissingDependencyError,
    NoCompatibleProfileError,
    UnsafeFileError,
)
from vllm_mxext.hub.hardware import Hardware, Host
from vllm_mxext.hub.mx_download import Downloading, NeedsDownloadError, main
from vllm_mxext.hub.startup import Prepared, prepare
from vllm_mxext.lora.source import inspect_adapter

GIB = 2**30
MACHINE = Hardware("a test", Host(num_cores=2, memory_bytes=8 * GIB, memory_available_bytes=7 * GIB))
NAME = "acme/tiny"


@pytest.fixture(scope="module")
def hub() -> Iterator[ModelHub]:
    with ModelHub() as hub:
        hub.add(NAME, builtin.model_path())
        hub.add("acme/adapter", builtin.adapter_path("math_tuned"))
        yield hub


@pytest.fixture
def environ(tmp_path: Path, hub: ModelHub) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.url, "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "*",
        "XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }  # fmt: skip


def started(environ: dict[str, str], *argv: str, hardware: Hardware = MACHINE, may_download: bool = True) -> Prepared:
    app: AppConfig = parse_serve_args(argv, environ=environ)
    return prepare(app, Downloading(is_allowed=may_download), environ=environ, hardware=hardware)


def write_manifest(tmp_path: Path, profiles: str, **more: str) -> str:
    config = (builtin.model_path() / "config.json").read_text()
    extra = "\n".join(f"{key}: {value}" for key, value in more.items())
    path = tmp_path / "manifest.yaml"
    path.write_text(
        f"schema: mx.hub/v1\nmodel: {{name: tiny, aliases: [small], config: {config}}}\nsources: ['hf://{NAME}']\n"
        f"artifacts: [{{name: safetensors}}]\nprofiles: {profiles}\n{extra}"
    )
    return str(path)


@pytest.mark.promise("HUB-START-3")
def test_a_name_of_a_hub_needs_no_manifest(environ: dict[str, str], hub: ModelHub) -> None:
    prepared = started(environ, NAME)
    resolved = resolve(prepared.app)
    assert resolved.engine.model.served_model_names == (NAME,)
    assert json.loads((resolved.engine.model.path / "config.json").read_text())["model_type"] == "llama"
    assert prepared.app.origins["model"].startswith("command line, acme/tiny at ")
    asked = len(hub.asked)
    again = started(environ, f"hf://{NAME}", "--offline")
    assert again.app.model.model == prepared.app.model.model
    assert len(hub.asked) == asked


@pytest.mark.promise("HUB-START-3")
def test_a_revision_is_asked_for_in_the_uri_or_by_flag(environ: dict[str, str], hub: ModelHub) -> None:
    commit = hub.add(NAME, builtin.model_path())
    for argv in ((f"hf://{NAME}@{commit}",), (f"hf://{NAME}:{commit}",), (NAME, "--revision", commit[:40])):
        served = started(environ, *argv).served
        assert served is not None
        assert served.snapshot is not None
        assert served.snapshot.revision == commit
    with pytest.raises(DownloadError, match="no-such-branch") as caught:
        started(environ, NAME, "--revision", "no-such-branch")
    assert caught.value.cause is HubCause.NOT_FOUND


@pytest.mark.promise("HUB-START-4")
def test_manifest_profile_and_flags_make_the_start(environ: dict[str, str], tmp_path: Path) -> None:
    manifest = write_manifest(
        tmp_path,
        "[{name: roomy, aliases: [big], engine_args: {max-num-seqs: 9, max-model-len: 300}},"
        " {name: narrow, engine_args: {max-num-seqs: 2}, fallback: true}]",
        adapters="[{name: math, uri: 'hf://acme/adapter'}]",
    )
    prepared = started(environ, "small", "--manifest", manifest, "--max-model-len", "200", "--enable-lora")
    resolved = resolve(prepared.app)
    assert (resolved.engine.scheduler.max_num_seqs, resolved.engine.model.max_model_len) == (9, 200)
    assert prepared.app.origins["max_num_seqs"] == "profile roomy of tiny"
    assert resolved.engine.model.served_model_names == ("small", "tiny")
    (module,) = resolved.server.lora.modules
    assert module.name == "math"
    assert (Path(module.path) / "adapter_config.json").is_file()
    assert (
        resolve(
            started(environ, "tiny", "--manifest", manifest, "--model-profile", "narrow").app
        ).engine.scheduler.max_num_seqs
        == 2
    )
    without_name = started(environ, "--manifest", manifest)
    assert without_name.served is not None
    assert without_name.served.entry.name == "tiny"


@pytest.mark.promise("HUB-START-4")
def test_what_cannot_run_is_refused_before_anything_is_downloaded(
    environ: dict[str, str], tmp_path: Path, hub: ModelHub
) -> None:
    manifest = write_manifest(tmp_path, "[{name: gpu, requires: {device: {kind: gpu}}}, {name: cpu}]")
    asked = len(hub.asked)
    with pytest.raises(NoCompatibleProfileError, match=r"gpu.*no GPU.*cpu would run"):
        started(environ, "tiny", "--manifest", manifest, "--model-profile", "gpu")
    with pytest.raises(ConfigError, match="did you mean gpu"):
        started(environ, "tiny", "--manifest", manifest, "--model-profile", "gpo")
    tight = replace(MACHINE, host=replace(MACHINE.host, memory_bytes=2**28, memory_available_bytes=2**27))
    with pytest.raises(NoCompatibleProfileError):
        started(environ, "tiny", "--manifest", manifest, hardware=tight)
    (tmp_path / "none.yaml").write_text("schema: mx.hub/v1\nmodels: []\n")
    with pytest.raises(ConfigError, match=r"has no models \(file .*none\.yaml"):
        started(environ, "--manifest", str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match="no model 'tyni'"):
        started(environ, "tyni", "--manifest", manifest)
    assert len(hub.asked) == asked


@pytest.mark.promise("HUB-START-3")
def test_tokenizers_draft_models_and_adapters_come_from_sources_too(environ: dict[str, str]) -> None:
    prepared = started(
        environ, "--model", str(builtin.model_path()), "--tokenizer", NAME, "--spec-model", f"hf://{NAME}",
        "--spec-tokens", "2", "--lora-modules", "math=hf://acme/adapter",
    )  # fmt: skip
    resolved = resolve(prepared.app)
    tokenizer = resolved.engine.model.tokenizer_path
    assert (tokenizer / "tokenizer.json").is_file()
    assert not list(tokenizer.glob("*.safetensors"))
    assert resolved.engine.speculation is not None
    assert resolved.engine.speculation.draft is not None
    assert prepared.served is None
    (module,) = resolved.server.lora.modules
    assert inspect_adapter(Path(module.path), resolved.engine.model.spec, max_rank=16).rank == 16
    with pytest.raises(DownloadError, match="There is no 'adapters/sql' on this machine, and as a name of a hub"):
        started(environ, "--lora-modules", "sql=adapters/sql")


@pytest.mark.promise("HUB-START-3")
@pytest.mark.parametrize(
    "flags",
    [
        ("--spec-model", f"hf://{NAME}", "--spec-tokens", "2"),
        ("--speculative-config", json.dumps({"model": f"hf://{NAME}", "num_speculative_tokens": 2})),
    ],
)
def test_a_model_and_its_draft_model_come_from_sources(environ: dict[str, str], flags: tuple[str, ...]) -> None:
    resolved = resolve(started(environ, "--model", f"hf://{NAME}", *flags).app)
    assert resolved.engine.speculation is not None
    assert resolved.engine.speculation.draft is not None


def test_offline_engines_download_too(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    config = EngineArgs(model=NAME, max_model_len=64).resolve()
    assert (config.engine.model.path / "config.json").is_file()
    with pytest.raises(DownloadError, match="--offline"):
        EngineArgs(model="acme/other", offline=True).resolve()


def test_a_start_that_may_not_download_says_that_it_would_have_to(environ: dict[str, str]) -> None:
    with pytest.raises(NeedsDownloadError):
        started(environ, NAME, may_download=False)


def test_the_documented_module_prints_the_folder(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert main([NAME]) == 0
    assert (Path(capsys.readouterr().out.strip()) / "config.json").is_file()
    assert main(["acme/none"]) == 4
    assert "acme/none" in capsys.readouterr().err
    assert main([]) == 2
    assert "Which model?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["a" * 300, f"{'a' * 300}.b", "~nobody-of-this-name/model", "a\0b", "../../nowhere", "%00"]
)
def test_a_name_that_cannot_be_a_path_is_an_unknown_model(environ: dict[str, str], name: str) -> None:
    with pytest.raises(ConfigError, match="There is no model"):
        started(environ, "--model", name)


def test_a_home_that_belongs_to_somebody_else_is_passed_over(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, stat = tmp_path / "home-of-somebody-else", os.stat

    def refuse(path: str | int, *rest: object, **options: object) -> os.stat_result:
        if not isinstance(path, int) and os.fspath(path).startswith(f"{closed}/"):
            raise PermissionError(13, "Permission denied", path)
        return stat(path, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", refuse)
    environ |= {"HOME": str(closed), "HF_HOME": str(closed / "hf"), "XDG_CONFIG_HOME": str(closed / ".config")}
    assert started(environ, "--model", NAME).served is not None
    with pytest.raises(ConfigError, match="give this user the right"):
        started(environ, "--model", str(closed / "model"))


@pytest.mark.promise("HUB-SIGN-1")
def test_a_signature_that_is_required_is_required_of_a_folder_too(environ: dict[str, str]) -> None:
    with pytest.raises((UnsafeFileError, MissingDependencyError), match="signature of"):
        started(environ, "--model", str(builtin.model_path()), "--model-signature", "require")


@pytest.mark.promise("HUB-START-3")
def test_what_is_stored_is_found_offline_by_every_way_to_name_its_revision(
    environ: dict[str, str], hub: ModelHub
) -> None:
    commit = hub.add(NAME, builtin.model_path())
    folder = started(environ, NAME).app.model.model
    for argv in ((NAME,), (f"{NAME}@{commit}",), (NAME, "--revision", commit), (f"hf://{NAME}@{commit[:9]}",)):
        assert started(environ, *argv, "--offline").app.model.model == folder
    with pytest.raises(DownloadError, match="Nothing is stored of 'acme/tiny' at the revision 'v1'"):
        started(environ, NAME, "--revision", "v1", "--offline")


def test_a_choice_is_logged_once_though_adapters_had_to_be_waited_for(
    environ: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    profiles = "[{name: one, engine_args: {enable-lora: true}}]"
    assert started(environ, "--manifest", write_manifest(tmp_path, profiles)).served is not None
    manifest = write_manifest(tmp_path, profiles, adapters="[{name: math, uri: 'hf://acme/adapter'}]")
    logger = logging.getLogger("vllm_mxext.hub.startup")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, logger.name):
        with pytest.raises(NeedsDownloadError):
            started(environ, "--manifest", manifest, may_download=False)
        assert started(environ, "--manifest", manifest).served is not None
    logger.removeHandler(caplog.handler)
    assert len({id(record) for record in caplog.records if record.getMessage().startswith("Model tiny")}) == 1


def test_a_manifest_without_models_says_so(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("schema: mx.hub/v1\nmodels: []\n")
    with pytest.raises(ConfigError, match="has no models"):
        started(environ, "--manifest", str(tmp_path / "empty.yaml"))


def test_options_that_mean_nothing_for_a_folder_are_told() -> None:
    folder = parse_serve_args(["--model", str(builtin.model_path()), "--revision", "main"], environ={"MIM_FROZEN": "1"})
    revision, frozen = without_effect(folder)
    assert "--revision (command line) has no effect" in revision
    assert "--frozen (environment MIM_FROZEN) has no effect" in frozen
    assert without_effect(parse_serve_args([NAME, "--revision", "main"], environ={})) == []
