"""Lint, types and the layout are part of the tests, so that one command says whether all is well."""

import re
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parent.parent
TOP = {"pyproject.toml", "overlay", "tests", "benchmarks", "certs", "README.md", "LICENSE"}


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / line for line in listed.splitlines()]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]],
    ids=["ruff check", "ruff format", "mypy"],
)
def test_clean(command: list[str]) -> None:
    """The tools have nothing to say."""
    ran = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_nothing_else_stands_at_the_top() -> None:
    """The first look at the project is a short one."""
    names = {path.relative_to(ROOT).parts[0] for path in tracked()}
    assert {name for name in names if not name.startswith(".")} <= TOP


def test_files_stay_small() -> None:
    """Past 600 lines there is a second concept; the median stays below 250."""
    sizes = {path: len(path.read_text().splitlines()) for path in tracked() if path.suffix == ".py"}
    assert [str(path) for path, lines in sizes.items() if lines > 600] == []
    assert median(lines for path, lines in sizes.items() if "overlay" in path.relative_to(ROOT).parts[:1]) < 250


def test_nothing_is_left_open() -> None:
    """No note to self, no machine's path, no skipped test."""
    words = re.compile("TO" + "DO|FIX" + "ME|X" + r"XX\b|NotImplemented" + r"Error|pytest\.mark\.(skip|x" + "fail)")
    open_ends = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked()
        if path.suffix in {".py", ".toml", ".md"} and path.exists()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if words.search(line)
    ]
    assert open_ends == []
