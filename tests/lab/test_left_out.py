"""Where the lab cannot run its tests are left out, and the output says how many and why; in CI that is an error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.lab

HERE = Path(__file__)
WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all")
REASON = "1 of them: this root may not make network namespaces ("


def collect(*arguments: str, ci: str) -> "subprocess.CompletedProcess[str]":
    """What pytest makes of one of these tests, as a root that has no rights."""
    selected = [f"{HERE}::test_a_machine_that_cannot_run_them_says_so", "--collect-only", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*WITHOUT_RIGHTS, sys.executable, "-m", "pytest", "-q", *selected, *arguments],
        cwd=HERE.parent.parent.parent,
        env=os.environ | {"CI": ci},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_machine_that_cannot_run_them_says_so() -> None:
    ended = collect(ci="")
    assert ended.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "1 of 1 tests cannot run on this machine\n" + REASON in ended.stdout


def test_in_ci_it_is_an_error() -> None:
    ended = collect(ci="true")
    assert ended.returncode == pytest.ExitCode.USAGE_ERROR
    assert (
        "ERROR: in CI nothing may be left out, and 1 of 1 tests cannot run on this machine\n" + REASON in ended.stderr
    )


def test_what_nobody_has_asked_for_is_not_missed() -> None:
    ended = collect("-m", "not lab", ci="true")
    assert ended.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "cannot run" not in ended.stdout + ended.stderr
