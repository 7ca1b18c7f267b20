"""docs/client.md: both languages say the same, its Python runs as printed, and its tables leave nothing out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from tests.api.server_thread import ServerThread
from tests.client.unified import SUITES
from tests.docs.readme import ROOT, code_blocks, heading_levels, inline_code, links, table_rows
from vllm_mxext import client as package
from vllm_mxext.client import errors
from vllm_mxext.client.call import Timeouts
from vllm_mxext.client.settings import ClientSettings
from vllm_mxext.client.vllm_client import VllmClient

pytestmark = pytest.mark.promise("DOCS-6")

ENGLISH, CHINESE = ROOT / "docs/client.md", ROOT / "docs/client_CH.md"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerThread]:
    with ServerThread() as server:
        yield server


def cells() -> list[list[str]]:
    """The rows of all tables, without headers' lines."""
    lines = ENGLISH.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.mark.promise("DOCS-2")
def test_both_languages_say_the_same() -> None:
    for read in (code_blocks, heading_levels, table_rows):
        assert read(ENGLISH) == read(CHINESE)
    assert sorted(inline_code(ENGLISH)) == sorted(inline_code(CHINESE))
    assert sorted(set(links(ENGLISH)) - {CHINESE.name}) == sorted(set(links(CHINESE)) - {ENGLISH.name})
    assert not [link for page in (ENGLISH, CHINESE) for link in links(page) if not (page.parent / link).exists()]


def test_the_python_of_the_page_runs_in_order(
    server: ServerThread, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    scope: dict[str, object] = {}
    printed = []
    for block in code_blocks(ENGLISH):
        if block.language != "python":
            continue
        code = re.sub(r"http://127\.0\.0\.1:800\d", server.url, block.text).replace("mx-tiny", "fake-model")
        code = code.replace("/path/to/math_adapter", str(tmp_path))
        exec(compile(code, "docs/client.md", "exec"), scope)
        printed.append(capsys.readouterr().out)
    client = scope["client"]
    assert isinstance(client, VllmClient)
    client.close()
    first, metrics, error = printed[0], printed[-2], printed[-1]
    assert first.startswith("What is 12 + 30? ")
    assert "['math_tuned']" in "".join(printed)
    assert error.startswith("NotFoundError 404 ")
    table = {name for row in cells() for name in re.findall(r"`(vllm_mxext_client_\w+)`", row[0])}
    kinds = re.findall(r"^# TYPE (\w+) (\w+)$", metrics, re.MULTILINE)
    assert table == {name for name, _ in kinds}


def test_every_error_is_in_the_table() -> None:
    known = [
        name for name, kind in vars(errors).items() if name.endswith("Error") and kind.__module__ == errors.__name__
    ]
    assert [row[0].strip("`") for row in cells() if row[0].endswith("Error`")] == known


def test_every_variable_and_limit_is_in_the_tables_with_its_default() -> None:
    variables = [row for row in cells() if row[0].startswith("`VLLM_")]
    expected = [one for one in fields(ClientSettings) if one.metadata["variable"]]
    assert [row[:2] for row in variables] == [[f"`{one.metadata['variable']}`", f"`{one.name}`"] for one in expected]
    assert [row[2].split("`")[1] for row in variables[1:]] == [str(one.default) for one in expected[1:]]
    limits = {row[0].strip("`"): row[1] for row in cells() if row[1].isdecimal()}
    assert limits == {one.name: f"{getattr(Timeouts(), one.name):g}" for one in fields(Timeouts)}


def test_everything_that_the_package_exports_is_named() -> None:
    text = ENGLISH.read_text(encoding="utf-8")
    assert [name for name in package.__all__ if not re.search(rf"\b{name}\b", text)] == []


def test_the_suites_of_the_runner_are_in_the_table() -> None:
    rows = {row[0].strip("`-"): row[2] for row in cells() if row[0].startswith("`--")}
    for suite in SUITES:
        assert rows[suite.name] == f"`{suite.file_name.format('*')}`"
        assert not suite.skip_variable or f"{suite.skip_variable}=true" in "".join(inline_code(ENGLISH))
