"""Every promise has a test, and every test that names a promise names a real one."""

from __future__ import annotations

import re
from pathlib import Path

from tests.requirements import PROMISES, references


def test_every_promise_has_a_test() -> None:
    missing = sorted(set(PROMISES) - set(references()))
    assert not missing, "mark a test with @pytest.mark.promise(...); python -m tests.requirements lists them"


def test_every_pain_has_a_test_named_after_it() -> None:
    pains = {promise: tests for promise, tests in references().items() if promise.startswith("PAIN-")}
    assert pains
    for pain, tests in pains.items():
        number = pain.removeprefix("PAIN-")
        assert any(re.search(rf":test_pains?_(\d+_and_)*{number}_", test) for test in tests), pain


def test_no_test_names_an_unknown_promise() -> None:
    unknown = {promise: tests for promise, tests in references().items() if promise not in PROMISES}
    assert not unknown


def test_references_are_found_on_functions_classes_methods_and_modules(tmp_path: Path) -> None:
    (tmp_path / "test_example.py").write_text(
        "pytestmark = [pytest.mark.slow, pytest.mark.promise('M')]\n"
        "@pytest.mark.promise('A', 'B')\nasync def test_one(): ...\n"
        "@pytest.mark.promise('C')\nclass TestTwo:\n    @pytest.mark.promise('D')\n    def test_three(self): ...\n"
        "@pytest.mark.promise('E')\ndef not_a_test(): ...\n"
    )
    assert references(tmp_path) == {
        "M": ["test_example.py:pytestmark"],
        "A": ["test_example.py:test_one"],
        "B": ["test_example.py:test_one"],
        "C": ["test_example.py:TestTwo"],
        "D": ["test_example.py:test_three"],
    }
