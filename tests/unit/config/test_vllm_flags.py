"""Every flag that vLLM's users bring works, or is refused with the reason or its new name; so do the variables."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vllm_mxext import envs
from vllm_mxext.config.app import AppConfig, parse_serve_args
from vllm_mxext.config.options import all_flags
from vllm_mxext.config.refused import refused_flags
from vllm_mxext.errors import ConfigError
from vllm_mxext.logger import LogSettings

pytestmark = pytest.mark.promise("CONF-4")

FRONTEND = """
--host 0.0.0.0; --port 8000; --uds /tmp/s; --api-key a; --root-path /x; --middleware a.B; --ssl-keyfile f;
--ssl-certfile f; --ssl-ca-certs f; --allowed-origins ["*"]; --allowed-methods ["*"]; --allowed-headers ["*"];
--allow-credentials; --served-model-name a; --chat-template {{x}}; --chat-template-content-format auto;
--default-chat-template-kwargs {}; --trust-request-chat-template; --response-role assistant; --lora-modules a=b;
--enable-auto-tool-choice; --tool-call-parser hermes; --tool-parser-plugin f; --tool-strict-level off; --tool-server x;
--reasoning-parser qwen3; --return-tokens-as-token-ids; --enable-request-id-headers; --enable-server-load-tracking;
--enable-force-include-usage; --enable-prompt-tokens-details; --disable-fastapi-docs; --enable-log-requests;
--enable-log-outputs; --max-log-len 10; --disable-access-log-for-endpoints /health; --log-config-file f;
--shutdown-timeout 0; --sse-keep-alive-interval 0; --fingerprint-mode full; --uvicorn-log-level info;
--h11-max-incomplete-event-size 5; --h11-max-header-count 5; --ssl-refresh; --ssl-cert-reqs 0
"""
MODEL = """
--dtype auto; --max-model-len -1; --max-model-len auto; --tokenizer t; --tokenizer-mode auto; --trust-remote-code;
--revision r; --hf-overrides {}; --runner auto; --convert auto; --load-format auto; --download-dir d;
--quantization awq; --seed 0; --generation-config auto; --override-generation-config {}; --max-logprobs 20;
--logprobs-mode raw_logprobs; --enforce-eager; --logits-processors a.B; --limit-mm-per-prompt {};
--mm-processor-cache-gb 4; --allowed-local-media-path /; --allowed-media-domains a
"""
CACHE = """
--gpu-memory-utilization 0.92; --kv-cache-memory-bytes 1GiB; --block-size 16; --kv-cache-dtype auto;
--enable-prefix-caching; --no-enable-prefix-caching; --prefix-caching-hash-algo sha256; --cpu-offload-gb 0;
--kv-offloading-size 1; --swap-space 4
"""
SCHEDULER = """
--max-num-batched-tokens 2048; --max-num-seqs 128; --enable-chunked-prefill; --no-enable-chunked-prefill;
--long-prefill-token-threshold 0; --scheduling-policy fcfs; --scheduling-policy priority; --async-scheduling;
--stream-interval 1; --max-num-queued-reqs 5; --max-num-queued-tokens 5
"""
PARALLEL = """
-tp 1; -tp 2; -pp 1; -pp=2; -dp 1; --distributed-executor-backend mp; --nnodes 1; --node-rank 0; --master-addr a;
--enable-expert-parallel
"""
OTHERS = """
--enable-lora; --max-loras 1; --max-lora-rank 16; --max-cpu-loras 1; --fully-sharded-loras; --speculative-config {};
--spec-method ngram; --spec-model m; --spec-tokens 3; --structured-outputs-config.backend auto;
--guided-decoding-backend auto; --compilation-config {}; -O0; -O1; -O2; -O3; -O 3; --enable-sleep-mode;
--kv-transfer-config {}; --kv-events-config {}; --otlp-traces-endpoint x; --collect-detailed-traces all;
--disable-log-stats; --profiler-config {}
"""
LISTED = [flag.strip() for group in (FRONTEND, MODEL, CACHE, SCHEDULER, PARALLEL, OTHERS) for flag in group.split(";")]

RENAMED = {
    "--task embed": "--runner",
    "--guided-decoding-backend outlines": "--structured-outputs-config.backend",
    "--disable-log-requests=false": "--enable-log-requests",
    "--enable-reasoning": "--reasoning-parser",
    "--speculative-model m": "--speculative-config",
    "--num-speculative-tokens 5": "--speculative-config",
    "--ngram-prompt-lookup-max 4": "--speculative-config",
    "--max-long-partial-prefills 2": "--long-prefill-token-threshold",
}
"""Old flags, asking for more than happens anyway -> what the refusal must name, unless the flag works."""

REMOVED = (
    "--swap-space 4", "--num-scheduler-steps 8", "--use-v2-block-manager=false", "--num-lookahead-slots 3",
    "--scheduler-delay-factor 0.5", "--preemption-mode swap", "--worker-use-ray", "--max-seq-len-to-capture 10",
    "--multi-step-stream-outputs",
)  # fmt: skip


def parse(*argv: str, environ: dict[str, str] | None = None) -> AppConfig:
    return parse_serve_args(argv, environ=environ or {})


def refusal(flag: str) -> str | None:
    """What the command line says to a flag; None if it takes it."""
    try:
        parse(*flag.split())
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("flag", LISTED)
def test_a_listed_flag_works_or_is_refused_with_the_reason(flag: str) -> None:
    told = refusal(flag)
    if told is not None:
        assert "is not supported: " in told
        reason = told.partition("is not supported: ")[2]
        assert len(reason.split()) >= 4, "a reason is more than a word"


@pytest.mark.parametrize("flag", LISTED)
def test_a_file_takes_what_the_command_line_takes(flag: str, tmp_path: Path) -> None:
    if not flag.startswith("--") or flag.startswith("--no-"):
        return
    name, _, value = flag[2:].partition(" ")
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump({name: value or True}))
    told = refusal(f"--config {file}")
    assert (told is None) == (refusal(flag) is None), told


@pytest.mark.parametrize("flag", RENAMED)
def test_a_renamed_flag_names_its_successor_or_works(flag: str) -> None:
    told = refusal(flag)
    assert told is None or RENAMED[flag] in told


@pytest.mark.parametrize("flag", REMOVED)
def test_a_removed_flag_says_why_it_is_gone(flag: str) -> None:
    told = refusal(flag)
    assert told is not None
    assert "is not supported: " in told


def test_no_flag_is_both_taken_and_refused() -> None:
    assert not {flag.name for flag in all_flags()} & set(refused_flags())


@pytest.mark.parametrize("argv", [("-dp", "1"), ("-dp=1",), ("--data_parallel_size", "1")])
def test_short_and_underscored_names_mean_the_long_ones(argv: tuple[str, ...]) -> None:
    assert parse(*argv) == parse()


@pytest.mark.promise("CONF-1")
def test_the_config_file_gives_way_to_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("port: 9000\nmax_num_seqs: 7\nenable-prefix-caching: false\nserved-model-name: [a, b]\n")
    config = parse("--config", str(file), "--port", "9001")
    assert (config.server.port, config.scheduler.max_num_seqs) == (9001, 7)
    assert (config.cache.enable_prefix_caching, config.model.served_model_name) == (False, ("a", "b"))


@pytest.mark.promise("LOG-1")
def test_variables_of_vllm_that_mean_something_are_honoured(tmp_path: Path) -> None:
    environ = {"VLLM_LOGGING_LEVEL": "DEBUG", "VLLM_LOGGING_CONFIG_PATH": str(tmp_path), "VLLM_API_KEY": "k"}
    settings = LogSettings.from_environ(environ)
    assert (settings.level, settings.config_path) == ("DEBUG", tmp_path)
    assert not LogSettings.from_environ({"VLLM_CONFIGURE_LOGGING": "0"}).is_enabled
    config = parse(environ=environ)
    assert config.server.api_key == ("k",)
    assert config.warnings == ()


@pytest.mark.parametrize(
    "name",
    [
        "VLLM_NO_USAGE_STATS",
        "DO_NOT_TRACK",
        "VLLM_DO_NOT_TRACK",
    ],
)
def test_what_a_variable_asks_for_happens_anyway(name: str) -> None:
    assert parse(environ={name: "1"}).warnings == ()


@pytest.mark.parametrize("name", ["VLLM_TRACE_FUNCTION", "VLLM_USAGE_SOURCE"])
def test_a_variable_without_effect_is_told_with_the_reason(name: str) -> None:
    (warning,) = parse(environ={name: "1"}).warnings
    assert f"{name} has no effect: " in warning
    assert parse(environ={name: "0"}).warnings == ()


def test_other_variables_of_vllm_are_told_but_those_of_kubernetes() -> None:
    (warning,) = parse(environ={"VLLM_RPC_TIMEOUT": "5", "VLLM_SERVICE_HOST": "x", "VLLM_PORT_80_TCP": "y"}).warnings
    assert "VLLM_RPC_TIMEOUT" in warning


def test_every_reason_is_more_than_a_word() -> None:
    assert all(reason is None or len(reason.split()) > 3 for reason in envs.VARIABLES_OF_OTHERS.values())
