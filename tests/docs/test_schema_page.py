"""docs/json_schema.md says what happens when its examples are run."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.promise("STRUCT-2")
def test_the_page_is_what_running_every_keyword_gives() -> None:
    script = runpy.run_path(str(ROOT / "docs/make_schema_table.py"))
    page = (ROOT / "docs/json_schema.md").read_text(encoding="utf-8")
    assert page == script["render"](), "run: python docs/make_schema_table.py"


@pytest.mark.promise("STRUCT-2")
def test_every_keyword_of_the_standard_is_on_the_page() -> None:
    script = runpy.run_path(str(ROOT / "docs/make_schema_table.py"))
    page = (ROOT / "docs/json_schema.md").read_text(encoding="utf-8")
    assert [name for name in script["KEYWORDS_2020_12"] if f"`{name}`" not in page] == []
