"""`resolve()` looks up what is open, and says clearly what does not fit together."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_mxext import builtin
from vllm_mxext.config.app import parse_serve_args
from vllm_mxext.config.engine import PreparedConfig
from vllm_mxext.config.machine import Memory
from vllm_mxext.config.memory_plan import plan_memory
from vllm_mxext.config.resolve import Machine, ResolvedConfig, resolve
from vllm_mxext.config.server import ParserConfig
from vllm_mxext.config.table import format_changes
from vllm_mxext.engine.engine_args import EngineArgs
from vllm_mxext.errors import ConfigError

HOST = Machine(num_cores=6, memory=Memory(total_bytes=10**9, available_bytes=10**9))


def resolved(*argv: str, host: Machine = HOST, **environ: str) -> ResolvedConfig:
    return resolve(parse_serve_args(argv, environ=environ), host)


def error_of(*argv: str, host: Machine = HOST) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(*argv, host=host)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_open_values_come_from_checkpoint_and_machine(checkpoint: Path) -> None:
    config = resolved(str(checkpoint))
    assert config.engine.model.dtype == "bfloat16"
    assert config.engine.model.max_model_len == 4096
    assert config.engine.model.tokenizer_path == checkpoint
    assert config.engine.model.served_model_names == (str(checkpoint),)
    assert config.engine.device.num_threads == 6
    assert config.engine.scheduler.max_num_batched_tokens == 512
    reasons = {name: decision.reason for name, decision in config.decisions.items()}
    assert (reasons["dtype"], reasons["num_threads"]) == ("checkpoint", "physical cores of this process")


@pytest.mark.promise("LOAD-2")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_engine_computes_in_the_type_of_the_checkpoint(checkpoint: Path, dtype: str) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": dtype}))
    assert resolved(str(checkpoint), "--dtype", "auto").engine.model.dtype == dtype


def test_given_values_are_kept(checkpoint: Path) -> None:
    config = resolved(
        str(checkpoint),
        "--dtype",
        "half",
        "--max-model-len",
        "1k",
        "--num-threads",
        "1",
        "--served-model-name",
        "a",
        "b",
    )
    assert config.engine.model.dtype == "float16"
    assert config.engine.model.max_model_len == 1000
    assert config.engine.device.num_threads == 1
    assert config.engine.model.served_model_names == ("a", "b")


@pytest.mark.promise("MODEL-1")
def test_without_a_model_the_built_in_one_is_served() -> None:
    config = resolved()
    assert config.engine.model.path == builtin.model_path()
    assert config.engine.model.served_model_names == (builtin.BUILTIN_MODEL_NAME,)
    for name in builtin.BUILTIN_ALIASES:
        assert resolved(name).engine.model == config.engine.model


def test_what_is_no_folder_is_refused_once_the_hub_has_been_asked() -> None:
    assert "no folder 'Qwen/Qwen3-0.6B'" in error_of("Qwen/Qwen3-0.6B")


def test_a_file_is_not_a_model(checkpoint: Path) -> None:
    assert "names the file" in error_of(str(checkpoint / "config.json"))


def test_a_missing_tokenizer_is_named(checkpoint: Path) -> None:
    assert "--tokenizer names 'nowhere'" in error_of(str(checkpoint), "--tokenizer", "nowhere")


def test_a_length_beyond_the_checkpoint_is_refused(checkpoint: Path) -> None:
    assert "limit of 4096 tokens" in error_of(str(checkpoint), "--max-model-len", "5000")


def test_an_automatic_length_is_what_fits_into_memory(checkpoint: Path) -> None:
    token_bytes = 2 * 2 * 2 * 16 * 2  # keys and values, layers, heads, elements, bytes
    argv = (str(checkpoint), "--max-model-len", "auto", "--kv-cache-memory-bytes")
    small = resolved(*argv, str(token_bytes * 16 * 11))
    assert small.engine.model.max_model_len == 160
    assert small.decisions["max_model_len"].reason == "fits into memory"
    assert resolved(*argv, "1GiB").engine.model.max_model_len == 4096


def test_an_automatic_length_without_room_says_what_to_change(checkpoint: Path) -> None:
    argv = (str(checkpoint), "--max-model-len", "-1")
    assert "--gpu-memory-utilization" in error_of(*argv, host=Machine(1, Memory(10**5, 10**5)))


@pytest.mark.parametrize("total_mb", [10, 40, 100, 1000])
@pytest.mark.parametrize("max_num_seqs", ["1", "200"])
def test_an_automatic_length_passes_the_memory_plan(checkpoint: Path, total_mb: int, max_num_seqs: str) -> None:
    memory = Memory(total_mb * 10**6, total_mb * 9 * 10**5)
    argv = (str(checkpoint), "--max-model-len", "auto", "--max-num-seqs", max_num_seqs)
    config = resolved(*argv, host=Machine(1, memory)).engine
    plan = plan_memory(config, memory)
    assert plan.max_cached_tokens >= config.model.max_model_len > 0


def test_the_token_budget_grows_with_what_needs_it(checkpoint: Path) -> None:
    assert resolved(str(checkpoint), "--max-num-seqs", "3000").engine.scheduler.max_num_batched_tokens == 3000
    unchunked = resolved(str(checkpoint), "--no-enable-chunked-prefill")
    assert unchunked.engine.scheduler.max_num_batched_tokens == 4096
    assert resolved(str(checkpoint), "--device", "cuda").engine.scheduler.max_num_batched_tokens == 2048


def test_a_token_budget_that_is_too_small_is_refused(checkpoint: Path) -> None:
    assert "raise it" in error_of(str(checkpoint), "--max-num-batched-tokens", "100")
    argv = (str(checkpoint), "--max-num-batched-tokens", "2048", "--no-enable-chunked-prefill")
    assert "4096 that --max-model-len" in error_of(*argv)


def test_sampling_defaults_come_from_the_generation_config_and_can_be_replaced(checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").write_text(
        json.dumps({"temperature": 0.6, "top_p": 0.9, "eos_token_id": 3})
    )
    override = '{"temperature": 0.1, "max_new_tokens": 9}'
    assert resolved(str(checkpoint)).frontend.default_sampling == {"temperature": 0.6, "top_p": 0.9}
    assert resolved(str(checkpoint), "--generation-config", "vllm").frontend.default_sampling == {}
    replaced = resolved(str(checkpoint), "--override-generation-config", override).frontend.default_sampling
    assert replaced == {"temperature": 0.1, "top_p": 0.9, "max_tokens": 9}


@pytest.mark.parametrize(
    ("override", "part"),
    [('{"temprature": 1}', "no field 'temprature'"), ('{"top_p": 2}', "top_p must be"), ('{"top_p": "x"}', "a number")],
)
def test_wrong_sampling_defaults_are_refused(checkpoint: Path, override: str, part: str) -> None:
    assert part in error_of(str(checkpoint), "--override-generation-config", override)


def test_a_folder_without_generation_config_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    assert "generation_config.json" in error_of(str(checkpoint), "--generation-config", str(tmp_path))


def test_the_chat_template_is_a_file_or_the_text_itself(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("{{ messages }}")
    assert resolved(str(checkpoint), "--chat-template", str(path)).frontend.templates.chat_template == "{{ messages }}"
    assert resolved(str(checkpoint), "--chat-template", "{{ x }}").frontend.templates.chat_template == "{{ x }}"
    assert resolved(str(checkpoint), "--chat-template", "tool_use").frontend.templates.chat_template == "tool_use"


def test_template_variables_and_content_format_are_the_operators(checkpoint: Path) -> None:
    variables = ("--default-chat-template-kwargs", '{"enable_thinking": false}')
    templates = resolved(str(checkpoint), "--chat-template-content-format", "openai", *variables).frontend.templates
    assert (templates.content_format, templates.kwargs) == ("openai", {"enable_thinking": False})
    with pytest.raises(ConfigError, match="must not set messages"):
        resolved(str(checkpoint), "--default-chat-template-kwargs", '{"messages": []}')


def test_flags_of_parsers_and_responses_reach_the_server(checkpoint: Path) -> None:
    server = resolved(
        str(checkpoint), "--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3",
        "--tool-parser-plugin", "x.py", "--exclude-tools-when-tool-choice-none", "--enable-force-include-usage",
        "--return-tokens-as-token-ids", "--enable-log-outputs",
    ).server  # fmt: skip
    assert server.parsers == ParserConfig(True, "hermes", "qwen3", Path("x.py"), True)
    assert server.always_includes_usage
    assert server.returns_tokens_as_ids
    assert server.log_outputs
    assert "neither a template nor a readable file" in error_of(str(checkpoint), "--chat-template", "nowhere.jinja")


def test_https_files_are_checked_before_anything_starts(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text("")
    assert "needs --ssl-certfile" in error_of(str(checkpoint), "--ssl-keyfile", str(path))
    assert "is no file" in error_of(str(checkpoint), "--ssl-certfile", "nowhere.pem")
    tls = resolved(str(checkpoint), "--ssl-certfile", str(path)).server.tls
    assert tls is not None
    assert tls.certfile == path


def test_server_flags_reach_the_server_configuration(checkpoint: Path) -> None:
    argv = (
        "--disable-fastapi-docs",
        "--api-key",
        "k",
        "--max-request-body-bytes",
        "1MiB",
        "--allowed-origins",
        '["a"]',
    )
    server = resolved(str(checkpoint), *argv).server
    assert (server.is_docs_enabled, server.api_keys, server.max_request_body_bytes) == (False, ("k",), 2**20)
    assert server.cors.allowed_origins == ("a",)
    assert "'k'" not in repr(server)


@pytest.mark.promise("CONF-1")
def test_the_table_names_what_is_no_default_with_its_origin_and_hides_secrets(checkpoint: Path) -> None:
    table = format_changes(resolved(str(checkpoint), "--api-key", "s3cret", VLLM_MXEXT_PORT="81"))
    lines = {line.split()[0]: line for line in table.splitlines()}
    assert lines["port"].split() == ["port", "81", "environment", "VLLM_MXEXT_PORT"]
    assert lines["dtype"].split() == ["dtype", "bfloat16", "checkpoint"]
    assert "max-num-seqs" not in lines
    assert "s3cret" not in table


def test_the_offline_api_resolves_the_same_way(checkpoint: Path) -> None:
    config = EngineArgs(model=str(checkpoint), max_num_seqs=4).resolve()
    assert config.engine.scheduler.max_num_seqs == 4


@pytest.mark.promise("CLI-2")
def test_resolving_imports_no_torch(checkpoint: Path) -> None:
    code = (
        "import sys; from vllm_mxext.engine.engine_args import EngineArgs; "
        f"EngineArgs(model={str(checkpoint)!r}).resolve(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.promise("INT8-1")
def test_quantization_is_a_choice_for_the_cpu(checkpoint: Path) -> None:
    assert resolved(str(checkpoint)).engine.model.quantization == "none"
    assert resolved(str(checkpoint), "-q", "int8").engine.model.quantization == "int8"
    assert "--device cpu" in error_of(str(checkpoint), "--quantization", "int8", "--device", "cuda")


@pytest.mark.promise("LOAD-5")
def test_prepared_weights_are_kept_in_the_cache_folder_unless_switched_off(checkpoint: Path, tmp_path: Path) -> None:
    prepared = resolved(
        str(checkpoint), "--cache-path", str(tmp_path), "--prepared-weights-limit", "3GiB"
    ).engine.prepared
    assert prepared == PreparedConfig(tmp_path / "prepared", 3 * 2**30)
    assert resolved(str(checkpoint), MIM_CACHE_PATH=str(tmp_path)).engine.prepared == PreparedConfig(
        tmp_path / "prepared", 20 * 2**30
    )
    assert resolved(str(checkpoint), "--no-prepared-weights").engine.prepared is None


def test_without_a_home_folder_nothing_is_kept(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_mxext.config.machine.cache_folder", lambda: None)
    config = resolved(str(checkpoint))
    assert config.engine.prepared is None
    assert config.decisions["cache_path"].reason == "there is no home folder"


@pytest.mark.promise("KV8-1")
def test_an_int8_cache_is_a_choice_for_the_cpu(checkpoint: Path) -> None:
    assert resolved(str(checkpoint), "--kv-cache-dtype", "int8").engine.cache.kv_cache_dtype == "int8"
    assert resolved(str(checkpoint)).engine.cache.kv_cache_dtype == "auto"
    assert "--device cpu" in error_of(str(checkpoint), "--kv-cache-dtype", "int8", "--device", "cuda")


INT4 = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}


def quantise(checkpoint: Path, **changes: object) -> str:
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {**INT4, **changes}}))
    return str(checkpoint)


@pytest.mark.promise("INT4-1")
@pytest.mark.parametrize("arguments", [(), ("--quantization", "gptq"), ("-q", "auto")])
def test_int4_checkpoints_are_recognised(checkpoint: Path, arguments: tuple[str, ...]) -> None:
    config = resolved(quantise(checkpoint), *arguments)
    assert config.engine.model.quantization == "none"
    assert config.engine.model.spec.int4 is not None
    assert re.search(r"quantization +gptq", format_changes(config))


@pytest.mark.promise("INT4-2")
@pytest.mark.parametrize("given", ["int8", "awq", "compressed-tensors", "none"])
def test_another_quantization_than_the_checkpoints_is_refused(checkpoint: Path, given: str) -> None:
    message = error_of(quantise(checkpoint), "--quantization", given)
    assert f"--quantization {given} does not fit the checkpoint, whose weights are int4 already (gptq)" in message


@pytest.mark.promise("INT4-2")
def test_int4_methods_need_an_int4_checkpoint_and_a_cpu(checkpoint: Path) -> None:
    assert "are not quantised; leave it out" in error_of(str(checkpoint), "--quantization", "awq")
    assert "int4 weights need --device cpu" in error_of(quantise(checkpoint), "--device", "cuda")
    assert "bits 8" in error_of(quantise(checkpoint, bits=8))


@pytest.mark.promise("DET-1")
def test_determinism_can_be_asked_for_with_a_flag_or_the_variable_of_vllm(checkpoint: Path) -> None:
    assert not resolved(str(checkpoint)).engine.device.is_deterministic
    assert resolved(str(checkpoint), "--deterministic").engine.device.is_deterministic
    assert resolved(str(checkpoint), VLLM_BATCH_INVARIANT="1").engine.device.is_deterministic
