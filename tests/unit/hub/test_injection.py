"""A profile's flags lie below everything that the user says, and cannot open doors."""

from __future__ import annotations

import pytest

from vllm_mxext.config.app import AppConfig, parse_serve_args
from vllm_mxext.errors import ConfigError, ManifestError
from vllm_mxext.hub.injection import allowed_fields, inject, overrides
from vllm_mxext.hub.judgement import Judgement, State
from vllm_mxext.hub.manifest.model import ModelEntry, Profile

ENTRY = ModelEntry("org/name")


def injected(app: AppConfig, profile: Profile, **suggested: object) -> AppConfig:
    return inject(app, ENTRY, Judgement(profile, State.RUNNABLE, ("It fits.",), suggested=suggested))


@pytest.mark.promise("HUB-CONF-1")
def test_command_line_beats_environment_beats_profile_beats_default() -> None:
    profile = Profile(
        "p", engine_args={"max-num-seqs": 3, "block_size": 32, "max-model-len": "8k", "dtype": "float32"},
        lora={"max_loras": 2},
    )  # fmt: skip
    app = parse_serve_args(["--max-num-seqs", "5"], environ={"VLLM_MXEXT_BLOCK_SIZE": "64"})
    made = injected(app, profile)
    assert (made.scheduler.max_num_seqs, made.cache.block_size, made.model.max_model_len) == (5, 64, 8000)
    assert (made.model.dtype, made.lora.max_loras, made.cache.gpu_memory_utilization) == ("float32", 2, 0.92)
    assert made.origins["max_num_seqs"] == "command line"
    assert made.origins["block_size"] == "environment VLLM_MXEXT_BLOCK_SIZE"
    assert made.origins["max_model_len"] == "profile p of org/name"
    assert "gpu_memory_utilization" not in made.origins


@pytest.mark.promise("HUB-CONF-1")
def test_what_makes_a_reduced_profile_fit_beats_what_the_profile_says() -> None:
    made = injected(
        parse_serve_args([], environ={}), Profile("p", engine_args={"max-model-len": 9000}), **{"max-model-len": 4096}
    )
    assert made.model.max_model_len == 4096
    assert "fits into memory" in made.origins["max_model_len"]


@pytest.mark.promise("HUB-SAFE-3")
@pytest.mark.parametrize(
    "flag",
    ["host", "api-key", "middleware", "logits-processors", "tool_parser_plugin", "model", "manifest", "lora-dir"],
)
def test_a_profile_cannot_say_who_is_let_in_or_which_code_is_loaded(flag: str) -> None:
    with pytest.raises(ManifestError, match=f"--{flag.replace('_', '-')}, which a profile may not"):
        injected(parse_serve_args([], environ={}), Profile("p", engine_args={flag: "x"}))


@pytest.mark.parametrize("path", ["/etc/shadow", "~/.ssh/id_rsa", "template.jinja", "../secret"])
def test_a_profile_cannot_make_the_server_read_its_owners_files(path: str) -> None:
    for flag in ("chat-template", "chat_template", "generation_config"):
        with pytest.raises(ManifestError, match="to a file, which a profile may not"):
            injected(parse_serve_args([], environ={}), Profile("p", engine_args={flag: path}))
    settings = {"chat-template": "{{ messages }}", "generation-config": "vllm"}
    assert injected(parse_serve_args([], environ={}), Profile("p", engine_args=settings)).model.chat_template


def test_a_wrong_value_names_the_profile() -> None:
    with pytest.raises(ConfigError, match="Profile p of org/name: max-num-seqs must be a whole number"):
        injected(parse_serve_args([], environ={}), Profile("p", engine_args={"max-num-seqs": "many"}))


def test_profiles_are_judged_with_what_the_user_has_set() -> None:
    app = parse_serve_args(["--max-model-len", "4096", "--port", "1"], environ={"VLLM_MXEXT_KV_CACHE_DTYPE": "int8"})
    assert overrides(app) == {"max_model_len": 4096, "kv_cache_dtype": "int8"}
    assert "port" not in allowed_fields()
