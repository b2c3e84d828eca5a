"""What the README shows is what happens."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block(marker: str) -> str:
    found = re.search(rf"<!-- {marker} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, f"the README has lost its block {marker!r}"
    return found[1]


def test_the_example_prints_what_the_readme_says() -> None:
    """Run as a user would, in a process of its own, with warnings as errors."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", block("example")], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "b'HELLO, KEY'\n", "")
    assert "It prints `b'HELLO, KEY'`" in README


def test_the_commands_of_the_readme_are_the_ones_that_there_are() -> None:
    """Each `overlay` command that is named exists."""
    named = set(re.findall(r"overlay ([a-z]+) ", block("demo") + "".join(README.split("```sh")[2:4])))
    help_text = subprocess.run(
        [sys.executable, "-m", "overlay.cli", "--help"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert named <= set(re.findall(r"\w+", help_text))


def test_ci_runs_the_readmes_test_command() -> None:
    """`.ci/run` takes it from here, so it has to be one line."""
    assert len(block("tests").splitlines()) == 1
    assert "<!-- tests -->" in (ROOT / ".ci" / "run").read_text()
