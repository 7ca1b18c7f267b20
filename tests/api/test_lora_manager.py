"""`mxext lora` against a running server: what it does, prints and exits with."""

from __future__ import annotations

import asyncio
import json
import runpy
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from vllm_mxext import builtin
from vllm_mxext.cli.main import main
from vllm_mxext.config.server import LoRAModule, LoRAServingConfig, ServerConfig
from vllm_mxext.engine.backends.fake import FakeEngineClient

pytestmark = pytest.mark.promise("LORA-CLI-1")

Lora = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
async def lora(serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Lora:
    """`await lora("list")`: exit code and what was printed, with a server that knows the adapter `known`."""
    for name in ("math", "known"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"r": 8}))
    modules = (LoRAModule("known", str(tmp_path / "known"), description="sums", is_loaded_at_start=False),)
    config = ServerConfig(lora=LoRAServingConfig(modules, allows_updates=True))
    server = await serve(FakeEngineClient(max_loras=2), config)

    async def run(*argv: str, where: tuple[str, ...] = ("--server-url", server.url)) -> tuple[int, str, str]:
        code = await asyncio.to_thread(main, ["lora", *where, *argv])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


async def test_an_adapter_is_loaded_listed_tried_and_unloaded(lora: Lora, tmp_path: Path) -> None:
    code, out, _ = await lora("load", "math", str(tmp_path / "math"), "--pin", "--description", "my sums")
    assert (code, out) == (0, "Success: LoRA adapter 'math' added successfully.\n")
    code, out, _ = await lora("list")
    assert code == 0
    head, loaded, known, summary = out.splitlines()
    assert head.split()[:4] == ["NAME", "TIER", "RANK", "FORMAT"]
    assert loaded.startswith("math   slot, pinned  8     huggingface")
    assert loaded.endswith("my sums")
    assert known.startswith("known  not loaded")
    assert summary == "1 loaded, 1 of 2 slots in use, ranks up to 32"
    code, out, _ = await lora("unload", "math")
    assert (code, out) == (0, "Success: LoRA adapter 'math' removed successfully.\n")


async def test_both_answers_stand_side_by_side(lora: Lora, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "83")
    assert (await lora("load", "known"))[0] == 0
    code, out, _ = await lora("test", "known", "hello", "--complete", "--scale", "0.5")
    assert code == 0
    assert [line.split("  ", 1)[0] for line in out.splitlines()] == ["fake-model", "----------", "hello"]
    assert [line[42:] for line in out.splitlines()] == ["known", "-----", "[known.1*0.5] hello"]
    long = "word " * 30
    code, out, _ = await lora("test", "known", long, "--complete", "--max-tokens", "300")
    assert max(map(len, out.splitlines())) <= 83
    assert out.count("word") == 60


async def test_json_is_for_programs(lora: Lora) -> None:
    assert json.loads((await lora("load", "known", "--json"))[1])["name"] == "known"
    listed = json.loads((await lora("list", "--json"))[1])
    assert [entry["description"] for entry in listed["data"]] == ["sums"]
    answers = json.loads((await lora("--json", "test", "known", "hello"))[1])
    assert answers["adapter_answer"] == "[known.1*1] " + answers["base_answer"]
    assert answers["base_model"] == "fake-model"


async def test_loading_again_needs_the_flag_if_the_files_are_others(lora: Lora, tmp_path: Path) -> None:
    await lora("load", "known")
    code, _, err = await lora("load", "known", str(tmp_path / "math"))
    assert code == 1
    assert "already been loaded" in err
    assert (await lora("load", "known", str(tmp_path / "math"), "--inplace"))[0] == 0


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("unload", "nothing"), "cannot be found"),
        (("load", "nothing"), "must be provided"),
        (("load", "nothing", "/no/such/folder"), "No adapter found"),
        (("test", "nothing", "hello"), "does not exist"),
    ],
)
async def test_what_the_server_refuses_ends_with_1(lora: Lora, argv: tuple[str, ...], sentence: str) -> None:
    code, _, err = await lora(*argv)
    assert code == 1
    assert sentence in err


async def test_without_a_server_it_ends_with_3(lora: Lora) -> None:
    code, _, err = await lora("list", where=("--url", "http://127.0.0.1:9"))
    assert code == 3
    assert "No server answers" in err


async def test_wrong_usage_ends_with_2(lora: Lora) -> None:
    assert (await lora("list", where=("--server-url", "nowhere")))[0] == 2
    with pytest.raises(SystemExit) as caught:
        await lora("laod", "x")
    assert caught.value.code == 2


def test_an_adapter_is_converted_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there, back = str(tmp_path / "trtllm"), str(tmp_path / "again")
    source = str(builtin.adapter_path("math_tuned"))
    assert main(["lora", "convert", source, there, "--to", "trtllm"]) == 0
    assert "(huggingface, rank 16)" in capsys.readouterr().out
    assert main(["lora", "convert", there, back, "--to", "huggingface", "--model", "builtin", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "trtllm"
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["r"] == 16


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["convert", "/no/such/adapter", "x", "--to", "trtllm"], 1),
        (["convert", "/no/such/adapter", "x", "--to", "trtllm", "--model", "/no/such/model"], 2),
    ],
)
def test_a_conversion_that_cannot_be_is_refused(argv: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lora", *argv]) == code
    assert "/no/such" in capsys.readouterr().err


async def test_a_server_without_adapters_says_so(serve, capsys: pytest.CaptureFixture[str]) -> None:
    server = await serve()
    assert await asyncio.to_thread(main, ["lora", "--server-url", server.url, "list"]) == 0
    assert "--enable-lora" in capsys.readouterr().out


async def test_the_documented_module_is_the_same_program(
    serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = await serve(FakeEngineClient(max_loras=1))
    monkeypatch.setattr(sys, "argv", ["lora_manager", "--server-url", server.url, "list", "--json"])

    def run() -> None:
        runpy.run_module("vllm_mxext.tools.lora_manager", run_name="__main__")

    with pytest.raises(SystemExit) as caught:
        await asyncio.to_thread(run)
    assert caught.value.code == 0
    assert json.loads(capsys.readouterr().out)["enabled"] is True
