"""docs/lora_accuracy.md says what the measurement in the repository says."""

from __future__ import annotations

import json

import pytest

from tests.docs.readme import ROOT
from training.served_accuracy import page


@pytest.mark.promise("DOCS-3")
def test_the_page_is_what_the_program_writes() -> None:
    (result,) = (ROOT / "benchmarks/results").glob("*-adapters-accuracy.json")
    measured = json.loads(result.read_text(encoding="utf-8"))["results"]
    assert measured["problems"] == []
    written = (ROOT / "docs/lora_accuracy.md").read_text(encoding="utf-8")
    assert written == page(measured["adapters"]), "run: python -m training.served_accuracy --page docs/lora_accuracy.md"
