"""The lab by hand: what it lists, the shell inside a scenario, and what it says of mistakes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.scenarios import scenarios

pytestmark = pytest.mark.lab


def by_hand(*arguments: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, Path(__file__).parent, *arguments],
        input=text,
        env=os.environ | {"SHELL": "sh"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_scenario_is_listed_once() -> None:
    listed = [line.rpartition(": ")[0] for line in by_hand().stdout.splitlines()]
    assert listed == [one.title for one in scenarios()]
    assert len(set(listed)) == len(listed)


def test_a_shell_is_inside_the_scenario() -> None:
    """In host a, with b and all the others of that network in reach."""
    ended = by_hand("shell", "open; a", text="ping -c 1 198.18.3.2\nip -oneline address show eth0\nexit\n")
    assert ended.returncode == 0
    assert "1 received" in ended.stdout
    assert "198.18.1.2/24" in ended.stdout


@pytest.mark.parametrize("arguments", [("frobnicate",), ("run", "--bogus"), ("shell",), ("run", "no such name")])
def test_a_mistake_is_one_line(arguments: tuple[str, ...]) -> None:
    ended = by_hand(*arguments)
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert line.startswith("lab: ")
    assert "`python tests/lab " in line
