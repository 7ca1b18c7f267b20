"""`mxext parse` prints the message that a text makes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from vllm_mxext.cli.main import main

TEXT = "<think>\nHm.\n</think>\n\nI look.\n"
TEXT += "<tool_call>\n<function=f>\n<parameter=n>\n3\n</parameter>\n</function>\n</tool_call>"
TOOL = {"name": "f", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}}}
TEMPLATE = "<|im_start|>{{ x }}<think></think><tool_call><function=f><parameter=x>"
MESSAGE = {
    "role": "assistant",
    "reasoning": "Hm.",
    "content": "I look.",
    "tool_calls": [{"id": None, "type": "function", "function": {"name": "f", "arguments": '{"n": 3}'}}],
}

pytestmark = pytest.mark.promise("PARSE-5")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    (tmp_path / "tools.json").write_text(json.dumps([{"type": "function", "function": TOOL}]), encoding="utf-8")
    (tmp_path / "template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    assert main(["parse", *argv]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("chunk", ["0", "1", "7"])
def test_a_file_becomes_a_message_in_pieces_of_any_size(
    folder: Path, chunk: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(folder / "text"), "--tools", str(folder / "tools.json"), "--chunk", chunk]
    assert printed(capsys, *argv, "--tool-call-parser", "qwen3_coder", "--reasoning-parser", "qwen3") == MESSAGE


def test_auto_goes_by_the_template(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--tools", str(folder / "tools.json"), "--chat-template", str(folder / "template.jinja")]
    names = ["--tool-call-parser", "auto", "--reasoning-parser", "auto"]
    assert printed(capsys, str(folder / "text"), *argv, *names) == MESSAGE


def test_standard_input_and_the_end_of_the_prompt_count(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hm.</think>Yes."))
    message = printed(capsys, "--reasoning-parser", "generic", "--prompt-end", "<think>\n")
    assert (message["reasoning"], message["content"]) == ("Hm.", "Yes.")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--tool-call-parser", "hermse"], "did you mean hermes?"),
        (["--tool-call-parser", "auto"], "name its file with --chat-template"),
        (["/no/such/file"], "Cannot read '/no/such/file'"),
        (["--tools", __file__], "must be a JSON list of tools"),
        (["--chunk", "-1"], "--chunk must be a number of characters"),
        (["--tool-parser-plugin", "/no/such/file"], "which is no file on this machine"),
    ],
)
def test_wrong_usage_is_told_in_one_sentence(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["parse", *argv]) == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert message.count("\n") == 1
