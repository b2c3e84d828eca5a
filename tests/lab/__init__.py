"""A laboratory for networks: real processes in hosts behind NATs, firewalls and bad links, on one machine.

    with Network() as network:
        alice, bob = network.host("alice"), network.host("bob")
        internet = network.router("internet")
        home = network.router("home", nat=Nat.SYMMETRIC)
        network.link(alice, home)
        network.link(home, internet, rate=10e6)
        network.link(bob, internet)
        internet.set_firewall(Firewall.UDP_BLOCKED)
        server = bob.start([...])

Each host is a network namespace; nothing is linked to the machine's own network. It needs root on Linux and a few
tools; `missing()` says which. Read `network.py` first, then `nodes.py`, `links.py`, `firewall.py`, `nat.py`.
"""

from lab.firewall import Firewall
from lab.impairment import Impairment
from lab.kernel import LabError
from lab.leftovers import sweep
from lab.links import Link
from lab.nat import Nat
from lab.network import Network
from lab.nodes import Host, Router
from lab.processes import Process
from lab.requirements import missing

__all__ = [
    "Firewall",
    "Host",
    "Impairment",
    "LabError",
    "Link",
    "Nat",
    "Network",
    "Process",
    "Router",
    "missing",
    "sweep",
]
