"""What the README shows is what happens."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block(marker: str) -> str:
    found = re.search(rf"<!-- {marker} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, f"the README has lost its block {marker!r}"
    return found[1]


@pytest.mark.parametrize(
    ("marker", "lines"),
    [
        ("example", ["b'HELLO, KEY'"]),
        ("driver", ["NeighbourUp", "b'to all' True quic", "b'too late' its age limit is over False"]),
    ],
)
def test_the_examples_print_what_the_readme_says(marker: str, lines: list[str]) -> None:
    """Run as a user would, in a process of its own, with warnings as errors."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", block(marker)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stdout.splitlines(), ran.stderr) == (0, lines, "")
    assert all(f"`{line}`" in README for line in lines)


def test_the_commands_of_the_readme_are_the_ones_that_there_are() -> None:
    """Each `overlay` command that is named exists."""
    shell = "".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
    named = set(re.findall(r"\boverlay ([a-z]+)\b", shell))
    assert {"demo", "send", "peers"} <= named
    help_text = subprocess.run(
        [sys.executable, "-m", "overlay.cli", "--help"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert named <= set(re.findall(r"\w+", help_text))


def test_ci_runs_the_readmes_test_command() -> None:
    """`.ci/run` takes it from here, so it has to be one line."""
    assert len(block("tests").splitlines()) == 1
    assert "<!-- tests -->" in (ROOT / ".ci" / "run").read_text()
