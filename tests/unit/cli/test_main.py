"""`mxext` finds commands without importing what they do not need, and exits with documented codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from vllm_mxext.cli.main import COMMANDS, main

HEAVY = ("torch", "fastapi", "pydantic", "starlette", "uvicorn", "numpy", "httpx", "tokenizers", "zmq", "yaml")


def modules_after(*argv: str) -> set[str]:
    """Runs a command line in a new process and returns the heavy modules it imported."""
    code = (
        "import json, sys\n"
        "from vllm_mxext.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit:\n    pass\n"
        f"print(json.dumps(sorted(set(sys.modules) & set({HEAVY!r}))), file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    assert result.stdout
    return set(json.loads(result.stderr.splitlines()[-1]))


@pytest.mark.parametrize("argv", [("--help",), ("--version",), ("serve", "--help"), ("hub", "--help")])
@pytest.mark.promise("CLI-2")
def test_help_imports_nothing_heavy(argv: tuple[str, ...]) -> None:
    assert modules_after(*argv) == set()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.promise("CLI-1")
def test_every_command_has_help_without_torch(command: str) -> None:
    assert "torch" not in modules_after(command, "--help")


def test_the_general_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"{name} " in printed
        assert command.summary in printed


def test_no_command_prints_help_and_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["sevre"], "did you mean serve?"),
        (["ps"], "here it is 'mxext server ps'"),
        (["pull", "a/b"], "here it is 'mxext hub pull'"),
        (["server", "strat"], "did you mean start?"),
        (["server", "add", "demo", "--prot", "9"], "Unknown flag --prot; did you mean --port?"),
        (["server", "rm", "demo", "another"], "'another' is one argument too many"),
        (["chat", "--max-tokns=9"], "did you mean --max-tokens?"),
        (["complete", "a", "--temprature", "0"], "did you mean --temperature?"),
        (["bench", "serve", "--concurent-requests", "9"], "did you mean --concurrent-requests?"),
    ],
)
def test_what_was_mistyped_is_named_with_a_suggestion(
    typed: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(typed) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert meant in line


def printing_into(output: int) -> tuple[int, str]:
    """Returns the exit code and the errors of a command whose output goes there."""
    code = "import sys; from vllm_mxext.cli.main import main; sys.exit(main(['--help']))"
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=output, stderr=subprocess.PIPE, text=True, env=environ, check=False
    )
    return done.returncode, done.stderr


def test_a_reader_that_has_gone_is_no_reason_for_words() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    assert printing_into(writing) == (1, "")
    os.close(writing)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is always full")
def test_a_full_disk_is_told_in_one_line() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    code, printed = printing_into(full)
    os.close(full)
    assert code == 1
    assert printed == "mxext: The output cannot be written: No space left on device; make room there.\n"


def test_a_wrong_flag_is_one_line_and_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--prot", "1"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "mxext: error: Unknown flag --prot; did you mean --port?\n"


@pytest.mark.parametrize("command", [["complete", "hello"], ["chat"], ["bench", "serve"]])
def test_without_a_server_the_commands_say_what_to_do(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--url", "http://127.0.0.1:9"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("mxext: No server answers at http://127.0.0.1:9")
    assert "mxext serve" in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://somewhere", ""])
def test_an_address_without_scheme_is_wrong_usage(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["complete", "hello", "--url", url]) == 2
    assert "--url must be an address such as http://127.0.0.1:8000" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["latency", "--workload", "8x128"],
        ["throughput", "--repeats", "0"],
        ["serve", "--model", "m", "--concurrent-requests", "0"],
        ["startup", "--repeats", "0"],
        ["kernels", "--isa", "z80"],
        ["kernels", "--context", "0"],
    ],
)
def test_wrong_benchmark_arguments_are_wrong_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *argv]) == 2
    assert capsys.readouterr().err.startswith("mxext: error: ")


@pytest.mark.promise("CLI-1")
def test_collect_env_prints_facts_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect-env", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["torch"]
    assert facts["hardware"]["usable_cores"] >= 1
    assert facts["kernels"]["selected"] in facts["kernels"]["runnable"]


@pytest.mark.promise("CLI-2")
def test_the_server_process_imports_no_torch() -> None:
    code = "import sys, vllm_mxext.entrypoints.openai.api_server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
