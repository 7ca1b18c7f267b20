"""Flags, environment and file become an `AppConfig`; mistakes are one clear sentence."""

from __future__ import annotations

import contextlib
from operator import attrgetter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_mxext.config.app import AppConfig, from_arguments, parse_serve_args
from vllm_mxext.config.options import all_flags
from vllm_mxext.config.refused import refused_flags
from vllm_mxext.errors import ConfigError


def parse(*argv: str, **environ: str) -> AppConfig:
    return parse_serve_args(argv, environ=environ)


def error_of(*argv: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(*argv, **environ)
    return str(caught.value)


def test_without_arguments_every_value_is_the_default() -> None:
    app = parse()
    assert app == AppConfig()
    assert (app.server.host, app.server.port, app.model.model) == ("127.0.0.1", 8000, None)


def test_the_model_may_be_positional_or_a_flag() -> None:
    assert parse("some/folder").model.model == "some/folder"
    assert parse("--model", "some/folder").model.model == "some/folder"
    assert "Two models" in error_of("a", "--model", "b")


@pytest.mark.promise("CONF-2")
def test_underscores_are_accepted_for_dashes() -> None:
    app = parse("--max_num_seqs", "7", "--no_enable_prefix_caching", "--served_model_name=a_b")
    assert app.scheduler.max_num_seqs == 7
    assert app.cache.enable_prefix_caching is False
    assert app.model.served_model_name == ("a_b",)


@pytest.mark.promise("CONF-1")
def test_the_command_line_beats_the_environment_and_the_environment_beats_the_file(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("port: 1\nhost: file\nmax_num_seqs: 3\nenable-prefix-caching: false\n")
    app = parse("--config", str(path), "--port", "3", VLLM_MXEXT_PORT="2", VLLM_MXEXT_HOST="environment")
    assert (app.server.port, app.server.host, app.scheduler.max_num_seqs) == (3, "environment", 3)
    assert app.cache.enable_prefix_caching is False
    assert app.origins == {
        "port": "command line",
        "host": "environment VLLM_MXEXT_HOST",
        "max_num_seqs": f"file {path}",
        "enable_prefix_caching": f"file {path}",
    }


def test_api_keys_come_from_the_flag_or_the_variable_of_vllm() -> None:
    assert parse(VLLM_API_KEY="one,two").server.api_key == ("one,two",)
    assert parse("--api-key", "a", "--api-key", "b").server.api_key == ("a", "b")


def test_a_secret_is_never_in_an_error() -> None:
    assert "s3cret" not in error_of("--api-key", '["s3cret", 1]')


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (("--portt", "1"), "did you mean --port?"),
        (("--max-modellen", "1"), "did you mean --max-model-len?"),
        (("-x",), "Unknown flag -x"),
        (("--port",), "--port"),
        (("--port", "http"), "whole number from 0 to 65535, got 'http'"),
        (("--port", "70000"), "from 0 to 65535"),
        (("--dtype", "fp8"), "one of auto, bfloat16"),
        (("--kv-cache-dtype", "fp8"), "must be one of auto, int8"),
        (("--gpu-memory-utilization", "1.5"), "at most 1"),
        (("--gpu-memory-utilization", "nan"), "at most 1"),
        (("--kv-cache-memory-bytes", "2 apples"), "such as 2GiB"),
        (("--override-generation-config", "[1]"), "JSON object"),
        (("--shutdown-timeout", "-1"), "0 or more"),
        (("a", "b"), "Unexpected argument 'b'"),
    ],
)
@pytest.mark.promise("CONF-3")
def test_a_wrong_command_line_is_one_sentence_that_names_the_flag(argv: tuple[str, ...], part: str) -> None:
    message = error_of(*argv)
    assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("prot: 1", "unknown name 'prot'; did you mean port?"),
        ("port: many", "port must be a whole number"),
        ("- port", "must hold lines of the form"),
        ("port: [", "is not valid YAML"),
        ("port: 1\nmax_num_seqs: 1\nmax-num-seqs: 2", "given twice"),
        ("data-parallel-size: 2", "data-parallel-size is not supported"),
        ("enable-prefix-caching: maybe", "1, true, yes"),
        ("port: 1.5", "whole number"),
        ("port: true", "whole number"),
    ],
)
@pytest.mark.promise("CONF-3")
def test_a_wrong_file_is_one_sentence_that_names_file_and_key(tmp_path: Path, content: str, part: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(content)
    message = error_of("--config", str(path))
    assert part in message
    assert str(path) in message
    assert "\n" not in message


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in error_of("--config", str(tmp_path / "none.yaml"))


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("# nothing yet\n")
    assert parse("--config", str(path)) == AppConfig()


def test_a_wrong_variable_is_named() -> None:
    assert "Environment variable VLLM_MXEXT_PORT must be" in error_of(VLLM_MXEXT_PORT="x")


def test_a_variable_that_nothing_reads_is_reported_with_a_suggestion() -> None:
    app = parse(VLLM_MXEXT_PROT="1", VLLM_MXEXT_LOG_LEVEL="DEBUG", VLLM_MXEXT_CPU_ISA="torch")
    assert app.warnings == ("Nothing reads the environment variable VLLM_MXEXT_PROT; did you mean VLLM_MXEXT_PORT?",)


@pytest.mark.promise("HUB-CONF-2")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("MIM_MODEL_PROFIL", "the environment variable MIM_MODEL_PROFIL; did you mean MIM_MODEL_PROFILE?"),
        ("MIM_OFLINE", "the environment variable MIM_OFLINE; did you mean MIM_OFFLINE?"),
        ("MIM_MODEL_PATH", "the environment variable MIM_MODEL_PATH; did you mean MIM_MODEL_NAME?"),
        ("MIM_ZZZ", "the environment variable MIM_ZZZ."),
        ("NIM_MODEL_PROFIL", "NVIDIA NIM's environment variable NIM_MODEL_PROFIL; did you mean NIM_MODEL_PROFILE?"),
    ],
)
def test_a_variable_of_the_hub_that_nothing_reads_is_reported_with_the_nearest_name(name: str, sentence: str) -> None:
    assert parse(**{name: "1"}).warnings == (f"Nothing reads {sentence}",)


def test_a_variable_of_nim_whose_wish_has_another_name_here_is_told_that_name() -> None:
    (warning,) = parse(NIM_SERVER_PORT="8000").warnings
    assert "--port" in warning


def test_what_kubernetes_sets_for_services_of_such_names_is_left_alone() -> None:
    environ = {
        "MIM_SERVICE_HOST": "10.0.0.1", "MIM_SERVICE_PORT": "80", "MIM_SERVICE_PORT_HTTP": "80",
        "MIM_PORT": "tcp://10.0.0.1:80", "NIM_LLM_PORT_80_TCP": "tcp://10.0.0.1:80",
        "NIM_LLM_PORT_80_TCP_PROTO": "tcp", "NIM_LLM_PORT_80_TCP_PORT": "80", "NIM_LLM_PORT_80_TCP_ADDR": "10.0.0.1",
    }  # fmt: skip
    assert parse(**environ).warnings == ()
    assert parse(MIM_PORT="80").warnings == ("Nothing reads the environment variable MIM_PORT.",)


@pytest.mark.promise("HUB-CONF-2")
@pytest.mark.parametrize(
    ("variable", "text", "group", "value"),
    [
        ("MIM_MODEL_NAME", "qwen3-4b", "model.model", "qwen3-4b"),
        ("MIM_MODEL_PROFILE", "abc", "hub.model_profile", "abc"),
        ("MIM_TENSOR_PARALLEL_SIZE", "2", "hub.tensor_parallel_size", 2),
        ("MIM_MANIFEST_ALLOW_UNSAFE", "yes", "hub.manifest_allow_unsafe", True),
        ("MIM_CACHE_PATH", "/cache", "model.cache_path", Path("/cache")),
        ("MIM_SERVED_MODEL_NAME", "a,b", "model.served_model_name", ("a", "b")),
        ("MIM_MAX_MODEL_LEN", "8k", "model.max_model_len", 8000),
        ("MIM_OFFLINE", "1", "hub.offline", True),
        ("MIM_MANIFEST_PATH", "/m.yaml", "hub.manifest", Path("/m.yaml")),
    ],
)
def test_every_documented_variable_of_the_hub_is_read(variable: str, text: str, group: str, value: object) -> None:
    app = parse(**{variable: text})
    assert attrgetter(group)(app) == value
    assert app.origins == {group.partition(".")[2]: f"environment {variable}"}
    assert app.warnings == ()


@pytest.mark.promise("HUB-CONF-2")
@pytest.mark.parametrize("variable", ["MIM_OFFLINE", "MIM_MANIFEST_ALLOW_UNSAFE", "MIM_FROZEN", "HF_HUB_OFFLINE"])
def test_a_switch_that_is_neither_on_nor_off_is_refused(variable: str) -> None:
    for text in ("maybe", "2", "tru", "enabled"):
        assert f"Environment variable {variable} must be 1, true, yes, on, 0, false" in error_of(**{variable: text})
    for text in ("1", "TRUE", "yes", "On", "0", "False", "no", "off"):
        parse(**{variable: text})


@pytest.mark.parametrize("name", sorted(refused_flags()))
@pytest.mark.promise("CONF-4")
def test_a_vllm_flag_that_is_not_built_is_refused_with_what_to_do(name: str) -> None:
    flag = refused_flags()[name]
    argv = [f"--no-{name}" if True in flag.accepts else f"--{name}"] if flag.is_switch else [f"--{name}", "unheard-of"]
    if flag.is_switch and {True, False} <= set(flag.accepts):
        assert parse(*argv) == AppConfig()
        return
    message = error_of(*argv)
    assert name in message
    assert "remove the flag" in message or "use --" in message


def test_refused_flags_are_allowed_when_they_ask_for_what_happens_anyway() -> None:
    argv = ["-tp", "1", "--enforce-eager", "--task=generate", "--disable-log-requests", "folder", "--swap-space", "0"]
    assert parse(*argv).model.model == "folder"


def test_no_flag_is_both_offered_and_refused() -> None:
    assert not {flag.name for flag in all_flags()} & set(refused_flags())


def test_keyword_arguments_use_the_same_names_and_rules() -> None:
    app = from_arguments(
        {"model": "m", "max_model_len": "8k", "tensor_parallel_size": 1, "dtype": None, "enforce_eager": True},
        environ={"VLLM_MXEXT_SEED": "5", "VLLM_MXEXT_PORT": "not read offline"},
    )
    assert (app.model.model, app.model.max_model_len, app.model.seed) == ("m", 8000, 5)
    assert app.origins["model"] == "argument"


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("max_modl_len", 1, "unknown name 'max_modl_len'; did you mean max_model_len?"),
        ("port", 1, "unknown name 'port'"),
        ("data_parallel_size", 2, "not supported"),
        ("seed", "x", "seed must be"),
        ("enable_prefix_caching", 1, "true or false"),
    ],
)
def test_a_wrong_keyword_argument_is_one_sentence(name: str, value: object, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_arguments({name: value}, environ={})
    assert part in str(caught.value)


@given(st.lists(st.text(max_size=12), max_size=4))
def test_no_command_line_raises_anything_but_a_config_error(words: list[str]) -> None:
    argv = [word for word in words if not word.startswith(("-h", "--h"))]
    with contextlib.suppress(ConfigError):
        parse(*argv)


def test_every_flag_has_a_sentence_of_help() -> None:
    for flag in all_flags():
        assert flag.facts.help.endswith("."), flag.name
