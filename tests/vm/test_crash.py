"""A run that is killed while a machine of its own is on leaves nothing that the next one does not take away."""

import pytest
from lab import sweep
from lab.kernel import processes_inside
from lab.victim import Victim

pytestmark = pytest.mark.vm("user-mode-linux")

PROGRAM = """
import sys
import vm
from lab import Network

sys.stdin.readline()
print("begun", flush=True)
with Network() as network:
    switch = network.host("switch")
    for bridge in ("net0", "net1"):
        switch.ip(f"link add {bridge} type bridge", f"link set {bridge} up")
    switch.ip("addr add 10.2.0.254/24 dev net0")
    guest = vm.UserModeLinux("carol", 1, switch)
    guest.boot()
    guest.wait_until_ready()
    print("booted", flush=True)
    sys.stdin.readline()
"""


def test_a_killed_run_takes_its_machine_along() -> None:
    """The kernel of the guest, the programs in it, and the switch."""
    with Victim(PROGRAM) as victim:
        victim.await_line("booted")
        assert len(processes_inside(victim.namespaces)) > 2, "who started it, its kernel, its agent"
    sweep()
    victim.await_nothing_left()
