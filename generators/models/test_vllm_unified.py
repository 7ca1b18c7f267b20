"""The same as `tests/client/test_vllm_unified.py`, at the path that the documents type."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from tests.client.unified import main

    sys.exit(main())
