"""The two READMEs say the same, and what they show exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.readme import (
    CHINESE,
    ENGLISH,
    ROOT,
    anchors,
    code_blocks,
    heading_levels,
    inline_code,
    links,
    table_rows,
)

FOLDERS = ("docs", "benchmarks", "vllm_mxext", "training", "tests", "examples", "scripts", "generators")


@pytest.mark.promise("DOCS-2")
def test_both_languages_show_the_same_commands_and_code() -> None:
    assert code_blocks(ENGLISH) == code_blocks(CHINESE)


@pytest.mark.promise("DOCS-2")
def test_both_languages_have_the_same_structure() -> None:
    assert heading_levels(ENGLISH) == heading_levels(CHINESE)
    assert table_rows(ENGLISH) == table_rows(CHINESE)


@pytest.mark.promise("DOCS-2")
def test_both_languages_name_the_same_things() -> None:
    assert sorted(inline_code(ENGLISH)) == sorted(inline_code(CHINESE))
    assert sorted(set(links(ENGLISH)) - {CHINESE.name}) == sorted(set(links(CHINESE)) - {ENGLISH.name})


PAGES = sorted({*ROOT.glob("*.md"), *(page for name in FOLDERS for page in (ROOT / name).rglob("*.md"))})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    missing = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" not in link and (not target.exists() or (anchor and anchor not in anchors(target))):
            missing.append(link)
    assert not missing


def test_every_page_is_found_from_the_readme() -> None:
    listed = {(ROOT / link.partition("#")[0]).resolve() for link in links(ENGLISH) if "://" not in link}
    assert not {page for page in PAGES if ROOT / "docs" in page.parents} - listed


def test_the_readme_shows_an_example_of_each_way_to_use_it() -> None:
    blocks = code_blocks(ENGLISH)
    assert any("curl " in block.text for block in blocks)
    assert any("from openai import" in block.text for block in blocks)
    assert any("from vllm_mxext import LLM" in block.text for block in blocks)


@pytest.mark.parametrize("target", ["serve", "test", "lint", "fix", "bench", "clean"])
def test_the_makefile_has_the_documented_targets(target: str) -> None:
    assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
