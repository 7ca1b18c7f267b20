"""docs/configuration.md says what the registry says, and the registry knows every variable that the code reads."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from vllm_mxext import envs
from vllm_mxext.config.options import all_flags

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_script_writes() -> None:
    script = runpy.run_path(str(ROOT / "docs/make_configuration.py"))
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert page == script["render"](), "run: python docs/make_configuration.py"


def test_every_variable_named_in_the_code_is_registered() -> None:
    known = {name for variable in envs.VARIABLES for name in (variable.name, *variable.aliases)}
    known |= {name for flag in all_flags() for name in flag.variables}
    unknown = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / "vllm_mxext").rglob("*.py")
        for name in re.findall(r"\bVLLM_MXEXT_[A-Z_]*[A-Z]\b", path.read_text(encoding="utf-8"))
        if name not in known and name != "VLLM_MXEXT_SOME_FLAG"
    }
    assert not unknown, "add them to vllm_mxext/envs.py"
