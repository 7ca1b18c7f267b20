"""Chat templates render as in transformers, and docs/chat_templates.md says what the comparison says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests.template_conformance import (
    KNOW_DEVELOPER,
    TAKE_PARTS,
    Comparison,
    Conformance,
    source_of,
    template_names,
)
from vllm_mxext.tokenizer.chat_template import ChatTemplates

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def conformance(tmp_path_factory: pytest.TempPathFactory) -> Conformance:
    return Conformance(tmp_path_factory.mktemp("conformance"))


@pytest.fixture(scope="module")
def comparisons(conformance: Conformance) -> list[Comparison]:
    return [conformance.compare(name) for name in template_names()]


@pytest.mark.promise("CHAT-1", "PAIN-6")
def test_prompts_and_tokens_are_those_of_transformers(comparisons: list[Comparison]) -> None:
    assert len(comparisons) >= 25
    assert [difference for one in comparisons for difference in one.differences] == []
    assert all(one.num_equal >= 10 for one in comparisons)


@pytest.mark.promise("PAIN-6")
def test_pain_6_a_prompt_has_the_bos_of_its_template_once(comparisons: list[Comparison]) -> None:
    for one in comparisons:
        assert one.num_bos == int("bos_token" in source_of(one.name)), one.name


@pytest.mark.promise("CHAT-2")
@pytest.mark.parametrize("name", template_names())
def test_the_form_of_content_is_read_off_every_template(name: str) -> None:
    found = ChatTemplates({"default": source_of(name)}, {}).content_format()

    assert found.takes_parts is (name in TAKE_PARTS)
    assert found.knows_developer is (name in KNOW_DEVELOPER)


def test_the_page_is_what_the_script_writes(comparisons: list[Comparison]) -> None:
    script = runpy.run_path(str(ROOT / "docs/make_template_table.py"))
    page = (ROOT / "docs/chat_templates.md").read_text(encoding="utf-8")
    assert page == script["render"](comparisons), "run: python docs/make_template_table.py"
