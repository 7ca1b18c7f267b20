"""docs/design/tools.md names every module of the client, the tester and the registry, and none that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.readme import ROOT

PAGE = (ROOT / "docs" / "design" / "tools.md").read_text(encoding="utf-8")
PACKAGES = {"Client": "client", "Performance tester": "bench/serve", "Server registry": "registry"}


def section(heading: str) -> str:
    return PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def modules(package: str) -> set[str]:
    return {path.name for path in (ROOT / "vllm_mxext" / package).glob("*.py")} - {"__init__.py"}


@pytest.mark.parametrize(("heading", "package"), PACKAGES.items(), ids=PACKAGES.values())
def test_every_module_is_in_the_table_of_its_package(heading: str, package: str) -> None:
    cells = [line.split("|")[1] for line in section(heading).splitlines() if line.startswith("| `")]
    named = [Path(name).name for cell in cells for name in re.findall(r"`([\w/]+\.py)`", cell)]
    assert sorted(named) == sorted(modules(package))
