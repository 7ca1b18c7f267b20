"""The file of `--lora-config`: every key counts, and a wrong one is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.docs.documented_lora import LORA_CONFIG
from vllm_mxext import builtin
from vllm_mxext.config.app import AppConfig, parse_serve_args
from vllm_mxext.config.resolve import ResolvedConfig, resolve
from vllm_mxext.errors import ConfigError

pytestmark = pytest.mark.promise("LORA-FILE-1")

EXAMPLE = Path(__file__).parents[3] / "examples/lora_config_example.yaml"


@pytest.fixture
def parse(tmp_path: Path):
    """`parse(yaml, *flags)`: what a command line with that file means."""

    def run(content: str, *flags: str, **environ: str) -> AppConfig:
        path = tmp_path / "lora.yaml"
        path.write_text(content)
        return parse_serve_args(["--lora-config", str(path), *flags], environ=environ)

    return run


def at_start(app: AppConfig) -> dict[str, bool]:
    return {module.name: module.is_loaded_at_start for module in app.lora.lora_modules}


def test_every_key_of_the_documented_file_is_honoured(parse) -> None:
    app = parse(LORA_CONFIG)
    assert (app.model.model, app.model.served_model_name) == ("/path/to/base/model", ("llama-2-7b-chat",))
    assert (app.lora.max_lora_rank, app.lora.max_loras, app.lora.max_cpu_loras) == (64, 8, 8)
    assert app.lora.allow_runtime_lora_updating
    assert at_start(app) == {"math_tuned": True, "code_tuned": False}
    first = app.lora.lora_modules[0]
    assert (first.path, first.format) == ("/path/to/lora/math_adapter", "huggingface")
    assert first.description == "LoRA adapter for mathematical reasoning"
    assert any("cache_size 4 is less than max_loras 8" in warning for warning in app.warnings)


def test_cache_size_is_what_main_memory_holds(parse) -> None:
    app = parse("lora_settings: {cache_size: 20, max_loras: 3}")
    assert (app.lora.max_cpu_loras, app.lora.max_loras, app.warnings) == (20, 3, ())


@pytest.mark.parametrize(
    ("own", "listed", "expected"),
    [
        (None, None, True),
        (None, [], False),
        (None, ["a"], True),
        (True, [], True),
        (True, None, True),
        (False, None, False),
    ],
)
def test_adapters_say_themselves_or_by_the_list_whether_they_are_loaded(
    parse, own: bool | None, listed: list[str] | None, expected: bool
) -> None:
    import yaml

    content: dict[str, Any] = {"lora_adapters": [{"name": "a", "path": "/a", "auto_load": own}], "auto_load": listed}
    assert at_start(parse(yaml.safe_dump(content))) == {"a": expected}


def test_flags_and_variables_win_and_their_adapters_come_in_addition(parse) -> None:
    app = parse(LORA_CONFIG, "--model", "/other", "--lora-modules", "math_tuned=/mine", "x=/x", VLLM_MAX_LORAS="3")
    assert (app.model.model, app.lora.max_loras, app.lora.max_lora_rank) == ("/other", 3, 64)
    assert {module.name: module.path for module in app.lora.lora_modules} == {
        "math_tuned": "/mine",
        "x": "/x",
        "code_tuned": "/path/to/lora/code_adapter",
    }
    assert app.origins["max_lora_rank"].startswith("file ")


def test_paths_are_seen_from_the_folder_of_the_file(parse, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    app = parse("{base_model: {model_path: model}, lora_adapters: [{name: a, path: ../b}]}")
    assert app.model.model == str(tmp_path / "model")
    assert app.lora.lora_modules[0].path == str(tmp_path.parent / "b")
    assert parse("base_model: {model_path: builtin}").model.model == "builtin"


def test_the_example_serves_the_built_in_model_with_one_of_its_adapters(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    resolved: ResolvedConfig = resolve(parse_serve_args(["--lora-config", str(EXAMPLE)], environ={}))
    assert resolved.engine.model.path == builtin.model_path()
    assert resolved.engine.lora is not None
    assert resolved.server.lora.allows_updates
    modules = {module.name: module for module in resolved.server.lora.modules}
    assert [Path(module.path) for module in modules.values()] == [builtin.adapter_path(name) for name in modules]
    assert {name: module.is_loaded_at_start for name, module in modules.items()} == {
        "math_tuned": True,
        "code_tuned": False,
    }


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("lora_setings: {}", "unknown key lora_setings; did you mean lora_settings?"),
        ("lora_settings: {max_lora: 3}", "unknown key lora_settings.max_lora; did you mean max_loras?"),
        ("lora_adapters: [{name: a, pth: b}]", "unknown key lora_adapters[0].pth; did you mean path?"),
        ("lora_adapters: [{name: a}]", "lora_adapters[0].path is missing."),
        ("lora_adapters: [{name: a, path: b, formt: c}]", "unknown key lora_adapters[0].formt; did you mean format?"),
        ("base_model: {path: b}", "unknown key base_model.path. Known here: model_path, model_name."),
        ("lora_settings: {max_loras: many}", "lora_settings.max_loras: Input should be a valid integer, got 'many'."),
        ("lora_settings: {max_loras: 0}", "lora_settings.max_loras: "),
        ("lora_adapters: [{name: a, path: b, format: zip}]", "lora_adapters[0].format: "),
        (
            "{lora_adapters: [{name: maths, path: b}], auto_load: [math]}",
            "unknown adapter 'math'; did you mean maths?",
        ),
        ("{lora_adapters: [{name: a, path: b, auto_load: false}], auto_load: [a]}", "remove one of the two."),
        ("lora_adapters: [{name: a, path: b}, {name: a, path: c}]", "lora_adapters names 'a' twice"),
        ("base_model: [a]", "base_model: Input should be a mapping of keys, got ['a']."),
        ("- a", "must hold lines of the form"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence_with_a_suggestion(parse, content: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(content)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'/no/such.yaml' cannot be read"):
        parse_serve_args(["--lora-config", "/no/such.yaml"], environ={})
