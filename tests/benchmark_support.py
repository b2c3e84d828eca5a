"""Running a benchmark as a user does: as a script, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def run_tiny(script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run it to its end, with as little work as there is."""
    return subprocess.run(
        [sys.executable, str(FOLDER / script), "--size", "tiny", *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=100,
        check=False,
    )
