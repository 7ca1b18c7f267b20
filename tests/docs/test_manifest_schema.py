"""docs/model_manifest.schema.json is what the reader of manifests enforces."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_file_is_what_the_script_writes() -> None:
    script = runpy.run_path(str(ROOT / "docs/make_manifest_schema.py"))
    page = (ROOT / "docs/model_manifest.schema.json").read_text(encoding="utf-8")
    assert page == script["render"](), "run: python docs/make_manifest_schema.py"
