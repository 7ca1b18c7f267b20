"""A folder that looks like the repository, in which documented commands are typed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from tests.docs.readme import ROOT

_MXEXT = "import sys; from vllm_mxext.cli.main import main; sys.exit(main())"


def lay_out(folder: Path, *names: str) -> dict[str, str]:
    """Links parts of the repository into a folder, and the programs that documents type; returns their variables."""
    for name in names:
        (folder / name).symlink_to(ROOT / name)
    (folder / "bin").mkdir()
    python = shlex.quote(sys.executable)
    for name, words in (("python", python), ("python3", python), ("mxext", f"{python} -c {shlex.quote(_MXEXT)}")):
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        program.chmod(0o755)
    own = {
        "PATH": os.pathsep.join([str(folder / "bin"), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_STATE_HOME": str(folder / "state"),
    }
    return {**os.environ, **own}


def type_in(folder: Path, command: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Types a command into bash; returns how it ended and what it printed."""
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environ, capture_output=True, text=True, timeout=400, check=False
    )
