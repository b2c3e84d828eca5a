"""A run that is killed at any moment leaves nothing that the next one does not take away."""

import time
from pathlib import Path

import pytest

from lab import Network, sweep
from lab.kernel import processes_inside
from lab.victim import Victim

pytestmark = pytest.mark.lab

PROGRAM = """
import sys
from lab import Firewall, Impairment, Nat, Network
from lab.leftovers import temporary_directory

sys.stdin.readline()
print("begun", flush=True)
while True:
    with temporary_directory() as directory, Network(families=(4, 6)) as network:
        (directory / "key.pem").touch()
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


def interfaces() -> list[str]:
    return sorted(path.name for path in Path("/sys/class/net").iterdir())


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_is_swept(moment: float) -> None:
    """Namespaces, directories, processes, and the interfaces of the machine."""
    before = interfaces()
    with Victim(PROGRAM, "loop") as victim:
        time.sleep(moment)
    sweep()
    victim.await_nothing_left()
    assert interfaces() == before


def test_a_run_that_is_killed_with_all_that_it_has_is_swept() -> None:
    """The network is complete, and its processes run."""
    before = interfaces()
    with Victim(PROGRAM, "stay") as victim:
        victim.await_line("built")
        assert (len(victim.namespaces), len(victim.directories)) == (3, 1)
        assert len(processes_inside(victim.namespaces)) == 5, "two shells, two sleepers, and the line"
    left = {*victim.namespaces, *(path.name for path in victim.directories)}
    assert len(left) == 4
    assert left <= set(sweep())
    victim.await_nothing_left()
    assert interfaces() == before


def test_a_living_run_is_left_alone() -> None:
    """Its namespaces, processes and files; a network of ours comes and goes meanwhile."""
    with Victim(PROGRAM, "stay") as victim:
        victim.await_line("built")
        names, alive = victim.namespaces, processes_inside(victim.namespaces)
        assert (len(names), len(alive)) == (3, 5), "two shells, two sleepers, and the line"
        with Network() as network:
            network.link(network.host("a"), network.host("b"))
        assert not set(names) & set(sweep())
        assert victim.namespaces == names
        assert processes_inside(names) == alive
        assert [path.name for directory in victim.directories for path in directory.iterdir()] == ["key.pem"]
        victim.process.communicate("\n", timeout=30)
        assert victim.process.returncode == 0
        assert (victim.namespaces, victim.directories) == ([], [])
