"""Every command line that the contract documents for the performance tester does what it says, typed as printed.

The server is one with known delays, in a process of its own; only its address and the folder of the logs are open.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs import documented_performance as documented
from tests.docs.readme import ROOT
from tests.docs.shell import lay_out, type_in
from vllm_mxext.bench.server_process import ServerProcess

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.promise("PERF-20"),
    pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed"),
]

BEHAVIOUR = '{"ttft_s": 0.02, "gap_s": 0.001, "output_tokens": 12, "is_precise": false}'
ADDRESS = "http://0.0.0.0:8000"
LOGS = "/opt/mim/log"
TESTER = "python -m vllm_mxext.tools.performance_tester"


@dataclass(frozen=True)
class Shell:
    """A folder in which commands are typed, beside a server."""

    folder: Path
    url: str
    environ: dict[str, str]

    def type(self, command: str) -> str:
        """What a command prints; it must measure and succeed, though a busy machine may make it say `invalid`."""
        for name in ("performance_tester", "performance_test.py"):
            places = f" --server-url {self.url} --log-dir {self.folder}/logs"
            command = re.sub(rf"({re.escape(name)})(?= )", rf"\1{places}", command)
        result = type_in(self.folder, command, self.environ)
        is_late = result.returncode == 4 and "the client" in result.stdout
        assert result.returncode == 0 or is_late, result.stdout[-2000:] + result.stderr
        return result.stdout

    def measure(self, command: str) -> dict[str, str]:
        """The summary of the one run that a command makes, and where its log is."""
        printed = self.type(command)
        assert printed.startswith(documented.BLOCK[:100])
        (log,) = re.findall(
            rf"^Results saved to: ({self.folder}/logs/mim_profile_\d+_\w+\.log)$", printed, re.MULTILINE
        )
        return {**dict(re.findall(r"^  (\w[\w ]+): (.*)$", printed, re.MULTILINE)), "log": log}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    python = f"exec {shlex.quote(sys.executable)} -m tests.bench_servers.mock_server --behaviour '{BEHAVIOUR}'"
    # The mock server only has --port, the last of the flags that are appended.
    command = ["bash", "-c", f'cd {shlex.quote(str(ROOT))} && {python} --port "$4"', "bash"]
    with ServerProcess(command, tmp_path_factory.mktemp("mock") / "log") as server:
        server.wait_for("/v1/models")
        yield server.url


@pytest.fixture
def shell(tmp_path: Path, url: str) -> Shell:
    return Shell(tmp_path, url, lay_out(tmp_path, "scripts"))


def commands(block: str) -> list[str]:
    """The commands of a block that has several, each under a comment and before an empty line."""
    return [part for part in block.split("\n\n") if part.strip()]


def test_the_basic_commands_measure(shell: Shell) -> None:
    default, with_prompts, with_concurrency, with_parameters = commands(documented.BASIC)
    assert shell.measure(default)["Total Requests"] == "10"
    (shell.folder / "prompts.txt").write_text("One.\nTwo.\nThree.\n")
    assert shell.measure(with_prompts)["Total Requests"] == "3"
    assert shell.measure(with_concurrency)["Completion Tokens"] == "120"
    summary = shell.measure(with_parameters)
    assert summary["Tokens counted by"] == "usage (10)"
    assert json.loads(section(summary["log"], "AGGREGATED"))["configuration"]["test_params"]["max_tokens"] == 200


def test_many_at_once_are_measured_and_kept_one_by_one(shell: Shell) -> None:
    summary = shell.measure(documented.HIGH_CONCURRENCY)
    assert summary["Total Requests"] == "50"
    assert json.loads(section(summary["log"], "AGGREGATED"))["peak_in_flight"] == 16
    assert section(summary["log"], "INDIVIDUAL").count('"request_id"') == 50


@pytest.mark.parametrize("block", [documented.CUSTOM_PROMPTS, documented.CHINESE_PROMPTS])
def test_prompts_of_a_file_are_sent(shell: Shell, block: str) -> None:
    assert shell.measure(block)["Total Requests"] == "3"


def test_without_streaming_there_is_no_first_token(shell: Shell) -> None:
    printed = shell.type(documented.NO_STREAM)
    ttft = printed.partition("Time to First Token (TTFT):\n")[2].partition("\n\n")[0]
    assert ttft.count("n/a") == 6
    assert re.search(r"End-to-End Latency:\n  Mean: \d+\.\d+s", printed)


def test_the_documented_file_is_measured(shell: Shell) -> None:
    text = documented.CONFIG.replace(ADDRESS, shell.url).replace(LOGS, f"{shell.folder}/logs")
    (shell.folder / "performance_config.yaml").write_text(text)
    summary = shell.measure(documented.RUN_CONFIG)
    assert summary["Total Requests"] == "3"
    assert section(summary["log"], "INDIVIDUAL").count('"request_id"') == 3


def test_the_script_measures(shell: Shell) -> None:
    (command,) = [part for part in documented.SCRIPT.splitlines() if part.startswith("python")]
    assert shell.measure(command)["Total Requests"] == "10"


def test_help_is_printed(shell: Shell) -> None:
    assert "--save-individual" in shell.type(f"{TESTER} --help")


def test_an_address_can_be_the_second_of_a_comparison(shell: Shell) -> None:
    printed = shell.type(f"{TESTER} --model m --num-prompts 16 --compare {shell.url} --max-tokens 4")
    assert "Comparison:" in printed or "INVALID" in printed


def section(log: str, name: str) -> str:
    text = Path(log).read_text(encoding="utf-8")
    return text.partition(f"{name} ")[2].partition(":\n")[2].partition("\n\n")[0]
