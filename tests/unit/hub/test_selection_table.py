"""The golden table of choices, read by hand: nothing in it changes unnoticed."""

from __future__ import annotations

import pytest

from tests.unit.hub.machines import MACHINE_FILES
from tests.unit.hub.selection_tables import FILE, MODELS, golden_table


@pytest.mark.promise("HUB-SEL-6")
def test_every_machine_gets_the_profile_that_was_reviewed_for_it() -> None:
    assert len(MACHINE_FILES) >= 15
    assert len(MODELS) >= 6
    assert golden_table() == FILE.read_text(), "see selection_tables.py for how to write the table anew"
