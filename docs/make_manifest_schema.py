"""Writes docs/model_manifest.schema.json from hub/manifest/schema.py: `python docs/make_manifest_schema.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vllm_mxext.hub.manifest.schema import published_schema

TARGET = Path(__file__).parent / "model_manifest.schema.json"


def render() -> str:
    """Returns the whole file."""
    return json.dumps(published_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"{TARGET}\n")
