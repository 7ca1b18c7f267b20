"""`Plan`: what a performance test does, as sections whose names are those of its YAML file.

Every field's metadata is one `Option`: the YAML key is the field's name, the flag is beside it. `plan_reading.py` turns
files and command lines into a plan.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vllm_mxext.bench.serve.address import Address
from vllm_mxext.bench.serve.blocks import MIN_BLOCKS
from vllm_mxext.bench.serve.plan_conflicts import MAX_REQUESTS, conflicts
from vllm_mxext.bench.serve.slo import SLO_PRESETS
from vllm_mxext.errors import ConfigError

Kind = Literal["text", "int", "float", "switch", "numbers", "length"]

DEFAULT_LOG_DIR = "/opt/mim/log"


@dataclass(frozen=True, slots=True)
class Option:
    """How a value of the plan is written.

    Attributes:
        kind: text, whole number, number, switch, list of numbers, or a token count (`128`) or range (`64:256`).
        help: a phrase for `--help`.
        flag: on the command line; empty if only files can set it.
        choices: the only values, if any.
        minimum: smallest number.
        maximum: largest number.
        metavar: for `--help`.
    """

    kind: Kind
    help: str
    flag: str = ""
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    metavar: str | None = None


def _option(default: Any, kind: Kind, text: str, flag: str = "", **rest: Any) -> Any:
    return field(default=default, metadata={"option": Option(kind, text, flag, **rest)})


@dataclass(frozen=True, slots=True)
class Length:
    """A number of tokens, or a range (both ends included) from which one is drawn uniformly."""

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """Section `server`: the server that is measured, and one to compare it with."""

    url: str = _option("http://0.0.0.0:8000", "text", "Server URL", "--server-url", metavar="URL")
    model: str = _option("", "text", "Model name to test", "--model", metavar="MODEL")
    name: str = _option("A", "text", "Label of the server in reports", "--server-name", metavar="NAME")
    api_key_env: str = _option(
        "VLLM_API_KEY", "text", "Environment variable that holds the API key", "--api-key-env", metavar="NAME"
    )
    compare_url: str = _option(
        "", "text", "A second server, measured alternately with the first", "--compare-url", metavar="URL"
    )
    compare_model: str = _option(
        "", "text", "Model of the second server, if its name differs", "--compare-model", metavar="MODEL"
    )
    compare_name: str = _option("B", "text", "Label of the second server in reports", "--compare-name", metavar="NAME")
    compare_rounds: int = _option(
        8,
        "int",
        "Rounds per server in a comparison",
        "--compare-rounds",
        minimum=MIN_BLOCKS,
        maximum=1000,
        metavar="N",
    )


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """Section `test_params`: what every request asks for, and what is measured beside it."""

    max_tokens: int = _option(100, "int", "Maximum tokens per response", "--max-tokens", minimum=1, metavar="N")
    temperature: float = _option(
        0.7, "float", "Temperature for generation", "--temperature", minimum=0, metavar="FLOAT"
    )
    concurrent_requests: int = _option(
        1, "int", "Number of concurrent requests", "--concurrent-requests", minimum=1, metavar="N"
    )
    stream: bool = _option(True, "switch", "Use streaming responses", "--stream")
    endpoint: str = _option(
        "chat", "text", "API route to request", "--endpoint", choices=("chat", "completions"), metavar="ROUTE"
    )
    ignore_eos: bool = _option(
        False,
        "switch",
        "Ignore end-of-text tokens and generate all of --max-tokens (not every server supports it)",
        "--ignore-eos",
    )
    warmup_requests: int = _option(
        0,
        "int",
        "Warm-up requests before measuring, from the same prompts",
        "--warmup-requests",
        minimum=0,
        maximum=MAX_REQUESTS,
        metavar="N",
    )
    timeout: float = _option(
        600.0, "float", "Seconds after which a request counts as failed", "--timeout", minimum=0.001, metavar="S"
    )
    seed: int = _option(0, "int", "Seed of prompts, lengths and arrivals", "--seed", minimum=0, metavar="N")
    tokenizer: str = _option(
        "",
        "text",
        "tokenizer.json to count tokens with where the server does not report them",
        "--tokenizer",
        metavar="FILE",
    )
    chunk_tokens: bool = _option(
        False, "switch", "Ask the server for the token count of every chunk (continuous_usage_stats)", "--chunk-tokens"
    )
    server_metrics: bool = _option(True, "switch", "Read the server's /metrics during the run", "--server-metrics")
    compat: str = _option(
        "own",
        "text",
        "Compute figures by the definitions of this tool",
        "--compat",
        choices=("own", "vllm", "guidellm"),
        metavar="TOOL",
    )


@dataclass(frozen=True, slots=True)
class WorkloadPlan:
    """Section `workload`: the prompts."""

    num_prompts: int = _option(
        10,
        "int",
        "Number of default prompts to use",
        "--num-prompts",
        minimum=1,
        maximum=MAX_REQUESTS,
        metavar="N",
    )
    prompts_file: str = _option(
        "", "text", "File containing prompts (one per line, or JSONL)", "--prompts-file", metavar="FILE"
    )
    num_requests: int = _option(
        0,
        "int",
        "Total number of requests, prompts reused in turn (0: one per prompt)",
        "--num-requests",
        minimum=0,
        maximum=MAX_REQUESTS,
        metavar="N",
    )
    input_tokens: Length | None = _option(  # noqa: RUF009 - `_option` returns a dataclass field
        None,
        "length",
        "Synthetic prompts of this many tokens, or of a range 64:256",
        "--input-tokens",
        minimum=1,
        maximum=MAX_REQUESTS,
        metavar="N",
    )
    output_tokens: Length | None = _option(  # noqa: RUF009 - the same
        None,
        "length",
        "Maximum tokens of each response instead of --max-tokens, or a range",
        "--output-tokens",
        minimum=1,
        metavar="N",
    )
    shared_prefix_tokens: int = _option(
        0,
        "int",
        "Length of the prefix that synthetic prompts share, in tokens",
        "--shared-prefix-tokens",
        minimum=0,
        metavar="N",
    )
    shared_prefixes: int = _option(
        1, "int", "Number of different shared prefixes, used in turn", "--shared-prefixes", minimum=1, metavar="N"
    )
    turns: int = _option(
        1,
        "int",
        "Turns per conversation: each prompt follows the answer to the one before",
        "--turns",
        minimum=1,
        metavar="N",
    )
    trace: str = _option(
        "",
        "text",
        "Trace to replay: JSONL with timestamp (s) or timestamp_ms, and prompt or input_length and output_length; or "
        "Mooncake's",
        "--trace",
        metavar="FILE",
    )
    trace_speed: float = _option(
        1.0, "float", "Replay the trace this many times faster", "--trace-speed", minimum=0.001, metavar="X"
    )


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Section `load`: when requests start; by default `concurrent_requests` are kept in flight all the time."""

    request_rate: float = _option(
        0.0,
        "float",
        "Requests per second, whether or not answers come (0: off)",
        "--request-rate",
        minimum=0,
        metavar="R",
    )
    burstiness: float = _option(
        1.0,
        "float",
        "Arrivals: 1 Poisson, below 1 in bursts, above 1 more even (gamma), inf constant",
        "--burstiness",
        minimum=0.001,
        metavar="B",
    )
    ramp_to: float = _option(
        0.0,
        "float",
        "Increase the rate evenly from --request-rate to this (0: constant rate)",
        "--ramp-to",
        minimum=0,
        metavar="R",
    )
    duration: float = _option(
        0.0,
        "float",
        "Send for this many seconds, prompts reused in turn (0: a fixed number of requests)",
        "--duration",
        minimum=0,
        metavar="S",
    )
    max_in_flight: int = _option(
        0,
        "int",
        "With a rate: at most this many requests in flight (0: no limit)",
        "--max-in-flight",
        minimum=0,
        metavar="N",
    )
    sweep: str = _option(
        "",
        "text",
        "Measure one load level after another until the server is saturated",
        "--sweep",
        choices=("concurrency", "rate"),
        metavar="WHAT",
    )
    sweep_levels: tuple[float, ...] = _option(
        (),
        "numbers",
        "Levels of the sweep, such as 1,2,4,8 (default: doubled until saturation)",
        "--sweep-levels",
        metavar="LIST",
    )


@dataclass(frozen=True, slots=True)
class SloPlan:
    """Section `slo`: the limits of a good answer, in milliseconds; 0 = no limit."""

    preset: str = _option(
        "", "text", "Preset limits of a benchmark", "--slo", choices=tuple(SLO_PRESETS), metavar="PRESET"
    )
    ttft_ms: float = _option(
        0.0, "float", "Limit of the time to first token (0: none)", "--slo-ttft-ms", minimum=0, metavar="MS"
    )
    tpot_ms: float = _option(
        0.0, "float", "Limit of the time per output token (0: none)", "--slo-tpot-ms", minimum=0, metavar="MS"
    )
    e2e_ms: float = _option(
        0.0, "float", "Limit of the end-to-end latency (0: none)", "--slo-e2e-ms", minimum=0, metavar="MS"
    )
    percentile: float = _option(
        99.0, "float", "Share of the answers that must be good, in percent", "--slo-percentile", minimum=0, metavar="P"
    )


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """Section `output`: what is written where."""

    log_dir: str = _option(DEFAULT_LOG_DIR, "text", "Directory to save log files", "--log-dir", metavar="DIR")
    save: bool = _option(True, "switch", "Save results to a file", "--save")
    save_individual_metrics: bool = _option(False, "switch", "Save individual request metrics", "--save-individual")
    console_output: bool = _option(True, "switch", "Print the results", "--console-output")
    language: str = _option("en", "text", "Language of labels", "--language", choices=("en", "zh"), metavar="LANG")
    json: str = _option("", "text", "Write everything as JSON", "--json", metavar="FILE")
    csv: str = _option("", "text", "Write one line per request as CSV", "--csv", metavar="FILE")
    prometheus: str = _option("", "text", "Write the figures as Prometheus text", "--prometheus", metavar="FILE")
    html: str = _option("", "text", "Write a report with charts, one file", "--html", metavar="FILE")
    history: bool = _option(True, "switch", "Add the figures to the history of earlier runs", "--keep-history")
    run_name: str = _option("", "text", "Keep the result under this name, for --baseline", "--run-name", metavar="NAME")
    baseline: str = _option(
        "", "text", "Earlier run to compare with: its name, or its JSON", "--baseline", metavar="NAME|FILE"
    )
    max_regression: float = _option(
        5.0,
        "float",
        "Percent by which a figure may be worse than the baseline's before it counts as a regression",
        "--max-regression",
        minimum=0,
        metavar="PERCENT",
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """A performance test.

    Attributes:
        prompts: written in the YAML file itself; empty if they come from elsewhere.
    """

    server: ServerPlan = ServerPlan()
    test_params: RequestPlan = RequestPlan()
    workload: WorkloadPlan = WorkloadPlan()
    load: LoadPlan = LoadPlan()
    slo: SloPlan = SloPlan()
    output: OutputPlan = OutputPlan()
    prompts: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Returns sections as a YAML file has them."""
        data = dataclasses.asdict(self)
        data["prompts"] = list(self.prompts)
        data["load"]["sweep_levels"] = list(self.load.sweep_levels)
        for name in ("input_tokens", "output_tokens"):
            length = getattr(self.workload, name)
            data["workload"][name] = None if length is None else str(length)
        if math.isinf(self.load.burstiness):
            data["load"]["burstiness"] = "inf"
        return data

    def checked(self) -> Plan:
        """Returns itself, after checking that its options go together.

        Raises:
            ConfigError: they do not, or a server's address is malformed.
        """
        for is_wrong, sentence in conflicts(self):
            if is_wrong:
                raise ConfigError(sentence)
        for url in filter(None, (self.server.url, self.server.compare_url)):
            Address.parse(url)
        return self


def options(section: type[Any]) -> Sequence[tuple[str, Option, Any]]:
    """Returns name, option and default of every field of a section."""
    return [(entry.name, entry.metadata["option"], entry.default) for entry in dataclasses.fields(section)]


def sections() -> dict[str, type[Any]]:
    """Returns the sections of a plan: name -> class."""
    return {
        "server": ServerPlan,
        "test_params": RequestPlan,
        "workload": WorkloadPlan,
        "load": LoadPlan,
        "slo": SloPlan,
        "output": OutputPlan,
    }
