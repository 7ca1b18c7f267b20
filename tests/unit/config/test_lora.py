"""Flags and variables about adapters: what switches them on, what they mean together, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from vllm_mxext.config.app import parse_serve_args
from vllm_mxext.config.engine import LoRAConfig
from vllm_mxext.config.machine import Memory
from vllm_mxext.config.resolve import Machine, ResolvedConfig, resolve
from vllm_mxext.config.server import LoRAModule, LoRAServingConfig
from vllm_mxext.config.table import format_changes
from vllm_mxext.engine.engine_args import EngineArgs
from vllm_mxext.errors import ConfigError

HOST = Machine(num_cores=2, memory=Memory(total_bytes=10**9, available_bytes=10**9))
pytestmark = pytest.mark.promise("LORA-10")


def resolved(*argv: str, **environ: str) -> ResolvedConfig:
    return resolve(parse_serve_args(argv, environ=environ), HOST)


def error_of(*argv: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(*argv, **environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def modules_of(*argv: str, **environ: str) -> tuple[LoRAModule, ...]:
    return resolved(*argv, **environ).server.lora.modules


def test_nothing_is_served_unless_something_asks_for_it() -> None:
    config = resolved("--max-loras", "4", VLLM_MAX_LORA_RANK="64")
    assert config.engine.lora is None
    assert config.server.lora == LoRAServingConfig()
    assert resolved(VLLM_ALLOW_RUNTIME_LORA_UPDATING="false").engine.lora is None


def test_the_defaults_are_those_of_the_documentation() -> None:
    assert resolved("--enable-lora").engine.lora == LoRAConfig(8, 32, 16, False) == LoRAConfig()


def test_each_way_to_ask_for_adapters_switches_them_on_and_the_table_says_which(tmp_path: Path) -> None:
    asked = [
        (("--enable-lora",), {}, "command line"),
        (("--lora-modules", "a=/x"), {}, "for --lora-modules"),
        (("--lora-dir", str(tmp_path)), {}, "for --lora-dir"),
        ((), {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}, "for --allow-runtime-lora-updating"),
    ]
    for argv, environ, origin in asked:
        config = resolved(*argv, **environ)
        assert config.engine.lora is not None
        row = next(line for line in format_changes(config).splitlines() if line.startswith("  enable-lora "))
        assert row.split(maxsplit=2)[1:] == ["on", origin]


@pytest.mark.parametrize(
    ("argv", "flag"),
    [
        (("--lora-modules", "a=/x"), "--lora-modules"),
        (("--lora-dir", "."), "--lora-dir"),
        (("--allow-runtime-lora-updating",), "--allow-runtime-lora-updating"),
    ],
)
def test_switching_adapters_off_contradicts_what_asks_for_them(argv: tuple[str, ...], flag: str) -> None:
    message = error_of("--no-enable-lora", *argv)
    assert flag in message
    assert "--no-enable-lora" in message
    assert resolved("--no-enable-lora").engine.lora is None


def test_the_variables_of_the_documentation_are_honoured() -> None:
    config = resolved(
        "--enable-lora", VLLM_MAX_LORAS="5", VLLM_MAX_LORA_RANK="128", MIM_MAX_CPU_LORAS="20", MIM_MAX_GPU_LORAS="6"
    )
    assert config.engine.lora == LoRAConfig(5, 128, 20)
    assert config.app.warnings == ()
    only = resolved("--enable-lora", MIM_MAX_GPU_LORAS="6").engine.lora
    assert only is not None
    assert only.max_loras == 6


def test_the_variable_that_allows_updates_is_a_strict_boolean() -> None:
    assert resolved(VLLM_ALLOW_RUNTIME_LORA_UPDATING="true").server.lora.allows_updates
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING must be 1, true" in error_of(VLLM_ALLOW_RUNTIME_LORA_UPDATING="maybe")


def test_main_memory_has_room_for_all_adapters_in_slots() -> None:
    config = resolved("--enable-lora", "--max-loras", "32")
    assert config.engine.lora == LoRAConfig(32, 32, 32)
    assert config.decisions["max_cpu_loras"].value == 32
    message = error_of("--enable-lora", "--max-loras", "32", "--max-cpu-loras", "16")
    assert "--max-cpu-loras 16 is less than --max-loras 32" in message


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("a=/x", "b=/y=z"), (LoRAModule("a", "/x"), LoRAModule("b", "/y=z"))),
        (("a=/x,b=/y",), (LoRAModule("a", "/x"), LoRAModule("b", "/y"))),
        (("a=/x,y",), (LoRAModule("a", "/x,y"),)),
        (('{"name": "a", "path": "/x", "base_model_name": "m"}',), (LoRAModule("a", "/x", "m"),)),
        (
            ('[{"name": "a", "path": "/x", "base_model_name": null}, "b=/y"]',),
            (LoRAModule("a", "/x"), LoRAModule("b", "/y")),
        ),
    ],
)
def test_modules_are_given_in_every_form_of_the_documentation(
    argv: tuple[str, ...], expected: tuple[LoRAModule, ...]
) -> None:
    assert modules_of("--lora-modules", *argv) == expected
    repeated = [part for entry in argv for part in ("--lora-modules", entry)]
    assert modules_of(*repeated) == expected
    assert len(argv) > 1 or modules_of(VLLM_MXEXT_LORA_MODULES=argv[0]) == expected


def test_a_file_gives_modules_as_a_list(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    given = ["a=/x", {"name": "b", "path": "/y", "format": "gguf", "description": "for tests"}]
    file.write_text(yaml.safe_dump({"lora-modules": given}))
    expected = (LoRAModule("a", "/x"), LoRAModule("b", "/y", None, "gguf", "for tests"))
    assert modules_of("--config", str(file)) == expected


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ("a", "must be NAME=PATH or a JSON object"),
        ("a=", "must be NAME=PATH"),
        ("=x", "must be NAME=PATH"),
        ("{", "must be NAME=PATH"),
        ("[1]", "must be NAME=PATH"),
        (json.dumps({"name": "a"}), "must be NAME=PATH"),
        (json.dumps({"name": "a", "path": 1}), "must be NAME=PATH"),
        (json.dumps({"name": "a", "path": "x", "rank": 3}), "not 'rank'"),
        ("a=x,a=y", "'a' is there twice"),
        ("model:a=x", "must not contain ':'"),
        ("a\tb=x", "must not contain control characters"),
        (f"{'a' * 129}=x", "1 to 128 characters"),
        ("a =x", "must not begin or end with a space"),
    ],
)
def test_a_module_that_cannot_be_read_is_refused_with_the_rule(given: str, part: str) -> None:
    message = error_of("--lora-modules", given)
    assert part in message
    assert "--lora-modules" in message


def test_an_adapter_cannot_have_the_name_of_the_model() -> None:
    assert "choose another name" in error_of("--served-model-name", "m", "--lora-modules", "m=/x")


def test_the_folder_of_adapters_must_be_there(tmp_path: Path) -> None:
    assert "is no folder" in error_of("--lora-dir", str(tmp_path / "none"))
    serving = resolved("--lora-dir", str(tmp_path), "--lora-refresh-interval", "0.5").server.lora
    assert (serving.folder, serving.refresh_s) == (tmp_path, 0.5)
    assert "greater than 0" in error_of("--lora-dir", str(tmp_path), "--lora-refresh-interval", "0")


def test_offline_engines_have_the_flags_that_concern_the_engine() -> None:
    config = EngineArgs(
        enable_lora=True, max_loras=2, max_lora_rank=64, max_cpu_loras=3, lora_allow_pickle=True
    ).resolve()
    assert config.engine.lora == LoRAConfig(2, 64, 3, True)
    assert EngineArgs(enable_lora=False, max_loras=2).resolve().engine.lora is None
    with pytest.raises(ConfigError, match="lora_modules"):
        EngineArgs(lora_modules=["a=/x"]).resolve()


@pytest.mark.parametrize(
    "flag",
    [
        "--lora-dtype auto",
        "--fully-sharded-loras",
        "--enable-lora-bias",
        "--no-enable-lora-bias",
        "--lora-extra-vocab-size 0",
    ],
)
def test_flags_of_vllm_that_ask_for_what_happens_anyway_are_taken(flag: str) -> None:
    assert resolved("--enable-lora", *flag.split()).engine == resolved("--enable-lora").engine
