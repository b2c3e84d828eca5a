"""A run that is killed at any moment leaves nothing that the next one does not take away."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab import Network, sweep
from lab.kernel import NAMESPACES, processes_inside, wait_until

pytestmark = pytest.mark.lab

TESTS = Path(__file__).parent.parent
PROGRAM = """
import sys
from lab import Firewall, Impairment, Nat, Network

sys.stdin.readline()
print("begun", flush=True)
while True:
    with Network(families=(4, 6)) as network:
        a, b, home = network.host("a"), network.host("b"), network.router("home", nat=Nat.FULL_CONE)
        network.link(a, home, rate=1e6)
        network.link(home, b, impairment=Impairment(delay=0.01))
        home.set_firewall(Firewall.UDP_BLOCKED)
        for host in (a, b):
            host.start(["sh", "-c", "setsid sleep 1000 & echo ready; wait"]).line("ready")
        if sys.argv[1] == "stay":
            print("built", flush=True)
            sys.stdin.readline()
            break
"""
MOMENTS = (0.0, 0.003, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4)
"""Seconds after the beginning: a network of the program's is built, used and left within about 0.3."""


def begin(mode: str) -> "subprocess.Popen[str]":
    """Start the program; its mark is inherited by all that it starts."""
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(TESTS), "LAB_MARK": mark(mode)},
    )
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write("\n")
    child.stdin.flush()
    assert child.stdout.readline() == "begun\n"
    return child


def mark(mode: str) -> str:
    return f"{os.getpid()}-{mode}"


def marked(mode: str) -> list[str]:
    """The processes that the program has started, itself included."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"LAB_MARK={mark(mode)}\0".encode() in path.read_bytes():
                found.append(path.parent.name)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            # It has ended, or it may do more than we: neither is one of the program's.
            continue
    return found


def namespaces_of(pid: int) -> list[str]:
    return [path.name for path in NAMESPACES.glob(f"overlay-lab-{pid}-*")]


def interfaces() -> list[str]:
    return sorted(path.name for path in Path("/sys/class/net").iterdir())


def end(child: "subprocess.Popen[str]") -> None:
    with child:
        child.kill()


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_is_swept(moment: float) -> None:
    """Namespaces, processes, and the interfaces of the machine."""
    before = interfaces()
    child = begin("loop")
    time.sleep(moment)
    end(child)
    sweep()

    def nothing_left() -> bool:
        return not namespaces_of(child.pid) and not marked("loop")

    wait_until(nothing_left, "what the killed run has left")
    assert interfaces() == before


def test_a_living_run_is_left_alone() -> None:
    """Its namespaces, processes and packets; a network of ours comes and goes meanwhile."""
    child = begin("stay")
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "built\n"
        names, alive = namespaces_of(child.pid), processes_inside(namespaces_of(child.pid))
        assert (len(names), len(alive)) == (3, 5), "two shells, two sleepers, and the line"
        with Network() as network:
            network.link(network.host("a"), network.host("b"))
        assert sweep() == []
        assert namespaces_of(child.pid) == names
        assert processes_inside(names) == alive
        child.communicate("\n", timeout=30)
        assert child.returncode == 0
        assert namespaces_of(child.pid) == []
    finally:
        end(child)
        sweep()
