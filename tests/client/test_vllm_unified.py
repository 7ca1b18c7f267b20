"""The unified test runner: `--standard`, `--performance`, `--real`, `--all`; pytest collects its standard suite."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pytest

from tests.client.checks import Check, Target
from tests.client.standard_checks import STANDARD
from tests.client.unified import echo_target, main

pytestmark = pytest.mark.promise("CLIENT-18")


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with echo_target(Target("")) as target:
        yield target


@pytest.mark.parametrize("check", STANDARD, ids=lambda check: check.__name__)
def test_standard(check: Check, target: Target) -> None:
    check(target)


if __name__ == "__main__":
    sys.exit(main())
