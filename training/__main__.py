"""Builds everything and then measures it: ``python -m training``."""

from __future__ import annotations

import subprocess
import sys


def main() -> None:
    """Run the build and the evaluation one after the other."""
    subprocess.run([sys.executable, "-m", "training.build"], check=True)
    subprocess.run([sys.executable, "-m", "training.evaluate", "--write-cards"], check=True)


if __name__ == "__main__":
    main()
