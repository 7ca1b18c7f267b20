"""Plans: the documented file and flags, refusals with a suggestion, and options that do not go together."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from vllm_mxext.bench.serve.plan import Length, Plan
from vllm_mxext.bench.serve.plan_reading import (
    add_plan_arguments,
    limits,
    plan_from_arguments,
    plan_from_mapping,
    read_plan,
)
from vllm_mxext.errors import ConfigError

DOCUMENTED = """
server:
  url: "http://0.0.0.0:8000"
  model: "llama-2-7b-chat"

test_params:
  max_tokens: 150
  temperature: 0.7
  concurrent_requests: 4
  stream: true

prompts:
  - "What is artificial intelligence?"
  - "什么是人工智能？"

output:
  log_dir: "/opt/mim/log"
  save_individual_metrics: true
  console_output: true
"""


def parsed(*arguments: str) -> Plan:
    parser = argparse.ArgumentParser()
    add_plan_arguments(parser)
    return plan_from_arguments(parser.parse_args(["--model", "m", *arguments]))


@pytest.mark.promise("PERF-1")
def test_the_documented_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "performance_config.yaml"
    path.write_text(DOCUMENTED, encoding="utf-8")
    plan = read_plan(path)
    assert (plan.server.url, plan.server.model) == ("http://0.0.0.0:8000", "llama-2-7b-chat")
    assert (plan.test_params.max_tokens, plan.test_params.temperature) == (150, 0.7)
    assert (plan.test_params.concurrent_requests, plan.test_params.stream) == (4, True)
    assert plan.prompts == ("What is artificial intelligence?", "什么是人工智能？")
    assert (plan.output.log_dir, plan.output.save_individual_metrics, plan.output.console_output) == (
        "/opt/mim/log",
        True,
        True,
    )


@pytest.mark.promise("PERF-1")
def test_the_documented_flags_have_the_documented_defaults() -> None:
    plan = parsed()
    assert plan.server.url == "http://0.0.0.0:8000"
    assert plan.workload.num_prompts == 10
    assert plan.test_params.max_tokens == 100
    assert plan.test_params.temperature == 0.7
    assert plan.test_params.concurrent_requests == 1
    assert plan.test_params.stream
    assert plan.output.log_dir == "/opt/mim/log"
    assert plan.output.save
    assert not plan.output.save_individual_metrics


@pytest.mark.promise("PERF-1")
def test_the_documented_flags_are_read() -> None:
    plan = parsed("--no-stream", "--no-save", "--save-individual", "--concurrent-requests", "8", "--log-dir", "/x")
    assert (plan.test_params.stream, plan.output.save, plan.output.save_individual_metrics) == (False, False, True)
    assert (plan.test_params.concurrent_requests, plan.output.log_dir) == (8, "/x")


def test_flags_change_what_a_file_gives() -> None:
    parser = argparse.ArgumentParser()
    add_plan_arguments(parser)
    base = plan_from_mapping({"server": {"model": "a"}, "test_params": {"max_tokens": 5, "seed": 3}})
    plan = plan_from_arguments(parser.parse_args(["--max-tokens", "7"]), base)
    assert (plan.server.model, plan.test_params.max_tokens, plan.test_params.seed) == ("a", 7, 3)


@pytest.mark.promise("PERF-1")
@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"sever": {}}, "did you mean server?"),
        ({"test_params": {"max_token": 5}}, "did you mean max_tokens?"),
        ({"test_params": {"max_tokens": "many"}}, "test_params.max_tokens must be a whole number; got 'many'"),
        ({"test_params": {"concurrent_requests": 0}}, "must be at least 1"),
        ({"test_params": {"stream": "yes"}}, "must be true or false"),
        ({"test_params": {"compat": "vlm"}}, "must be one of own, vllm, guidellm"),
        ({"prompts": "one"}, "must be a list of texts"),
        ({"output": []}, "must hold lines of the form"),
        ({"workload": {"input_tokens": "9:3"}}, "smaller number first"),
        ({"load": {"sweep_levels": [1, "x"]}}, "must be a number"),
    ],
)
def test_wrong_files_are_refused_with_a_reason(data: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("?", r"\?")):
        plan_from_mapping(data)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--prompts-file", "p", "--trace", "t"),
        ("--trace", "t", "--num-requests", "5"),
        ("--trace", "t", "--warmup-requests", "5"),
        ("--max-in-flight", "5"),
        ("--sweep", "concurrency", "--sweep-levels", "1.5,2"),
        ("--request-rate", "1e6", "--duration", "1e6"),
        ("--num-prompts", "1000000000"),
        ("--compare-url", "http://b", "--compare-rounds", "5"),
        ("--shared-prefix-tokens", "5"),
        ("--input-tokens", "4:9", "--shared-prefix-tokens", "5"),
        ("--turns", "2", "--endpoint", "completions"),
        ("--turns", "2", "--request-rate", "1"),
        ("--ramp-to", "5"),
        ("--sweep", "rate", "--request-rate", "1"),
        ("--sweep-levels", "1,2"),
        ("--trace", "t", "--duration", "3"),
        ("--compare-url", "u", "--sweep", "rate"),
        ("--slo-percentile", "0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        parsed(*arguments)


def test_a_model_is_needed() -> None:
    with pytest.raises(ConfigError, match="--model"):
        Plan().checked()


def test_lengths_are_numbers_or_ranges() -> None:
    plan = parsed("--input-tokens", "64:256", "--output-tokens", "8")
    assert (plan.workload.input_tokens, plan.workload.output_tokens) == (Length(64, 256), Length(8, 8))


def test_a_plan_written_as_a_mapping_is_read_back() -> None:
    plan = parsed("--input-tokens", "64:256", "--burstiness", "inf", "--request-rate", "3", "--slo-ttft-ms", "50")
    data = plan.as_dict()
    del data["prompts"]
    assert plan_from_mapping(data) == plan


def test_given_objectives_change_those_of_a_preset() -> None:
    slo = limits(parsed("--slo", "mlperf-llama2-70b-interactive", "--slo-tpot-ms", "50"))
    assert (slo.ttft_s, slo.tpot_s, slo.e2e_s) == (0.45, 0.05, None)


def test_a_number_that_no_machine_can_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be a number"):
        plan_from_mapping({"test_params": {"temperature": 10**400}})


@pytest.mark.parametrize("flag", ["--server-url", "--compare-url"])
def test_a_password_in_an_address_is_refused_and_not_repeated(flag: str) -> None:
    with pytest.raises(ConfigError, match="without a user") as caught:
        parsed("--model", "m", flag, "http://user:hush@127.0.0.1:9")
    assert "hush" not in str(caught.value)
