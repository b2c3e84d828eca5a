"""What happens to a site under a transfer, each of it with a look at the network: that it has really happened.

A transfer that goes on proves nothing about a change that its sender does not notice. So those changes that cannot be
seen in the outcome raise a `LabError` if the network is not changed afterwards, or if no packet of the transfer has met
the change.
"""

import re
import time
from collections.abc import Callable

from lab.firewall import Firewall
from lab.kernel import LabError, wait_until
from lab.links import Link
from lab.nodes import Host, Router
from lab.topology import Side, Site
from lab.transfer import PORT

Change = Callable[[Site], object]

MEETING_SECONDS = 20.0
"""For the transfer's next packet: a lost path is replaced within a few seconds."""

TRACER = ("-p", "udp", "-s", "192.0.2.1", "-d", "192.0.2.2", "--sport", "1", "--dport", "2")
"""A connection of nobody's (RFC 5737), for a router to forget: no packet brings it back."""

FLOW = re.compile(r"src=\S+ dst=\S+ sport=\d+ dport=\d+ .*?src=\S+ dst=(\S+) sport=\d+ dport=(\d+)")
"""A line of conntrack(8): a connection as it is inside, and its answers as they come from outside."""


def lose_udp(side: Side, *firewalls: Firewall) -> Change:
    """UDP from one side vanishes; beside that, the internet has firewalls."""

    def change(site: Site) -> None:
        interface = site.links[f"wan_{side}"].interface(site.internet)
        rule = f'iifname "{interface}" meta l4proto udp drop'
        site.internet.set_firewall(Firewall("UDP_ONE_WAY", f"UDP from {side} vanishes.", (rule,)), *firewalls)

    return change


def rebind(site: Site) -> None:
    """The NAT at a forgets, and the next packet of the transfer gets another port."""
    home = site.homes["a"]
    before = outsides(home, "udp")
    if not before:
        raise LabError(f"{home.name} translates nothing of the transfer that it could forget: is there a NAT?")
    _forget(home, home.forget)

    def moved() -> bool:
        now = outsides(home, "udp")
        if now & before:
            # One time in ten thousand it draws the same port.
            home.forget()
        return bool(now - before)

    wait_until(moved, f"{home.name} to translate the transfer's packets to another port than {before}", MEETING_SECONDS)


def restart(transport: str) -> Change:
    """The router at a loses its power, and the transfer passes through it again.

    Args:
        transport: over which the transfer goes.
    """

    def change(site: Site) -> None:
        home = site.homes["a"]
        _forget(home, home.restart)
        protocol = "tcp" if transport == "tcp" else "udp"
        wait_until(
            lambda: bool(outsides(home, protocol)), f"the transfer to pass through {home.name} again", MEETING_SECONDS
        )

    return change


def readdress(link: str, witness: Side) -> Change:
    """The lower end of a link gets a new address, and the other side hears from it.

    Args:
        link: its name in the site.
        witness: the host that hears it.
    """

    def change(site: Site) -> None:
        changed = site.links[link]
        family = site.plan.families[0]
        old = changed.address(changed.lower, family)
        new = changed.readdress(family)
        if old in _addresses(changed.lower) or new == old:
            raise LabError(f"{changed.lower.name} still has its old address {old}")
        _hear(site.hosts[witness], new)

    return change


def shrink(site: Site) -> None:
    """A link on the way has a smaller MTU from now on."""
    link = site.links["wan_b"]
    for host in (link.lower, link.upper):
        host.ip(f"link set {link.interface(host)} mtu 1280")


def unplug(seconds: float) -> Change:
    """There is no network at a for a while."""

    def change(site: Site) -> None:
        link: Link = site.links["near_a"]
        link.down()
        # The scenario itself, not a wait for something: so long there is no network.
        time.sleep(seconds)
        link.up()

    return change


def outsides(router: Router, protocol: str) -> set[tuple[str, str]]:
    """Under which addresses and ports a router shows the transfer's connections to the outside.

    Args:
        router: one that translates.
        protocol: "udp" or "tcp".
    """
    shown = router.run(["conntrack", "-L", "-p", protocol, "--orig-port-dst", str(PORT)])
    return {(match[1], match[2]) for match in FLOW.finditer(shown)}


def _forget(router: Router, event: Callable[[], object]) -> None:
    """Let something happen that makes a router forget its connections, and check that it has."""
    router.run(["conntrack", "-I", *TRACER, "--timeout", "600"])
    event()
    if router.run(["conntrack", "-L", *TRACER]):
        raise LabError(f"{router.name} has forgotten nothing: a connection from before is still there")


def _addresses(host: Host) -> list[str]:
    return re.findall(r" inet6? (\S+)/", host.run(["ip", "-oneline", "address"]))


def _hear(host: Host, address: str) -> None:
    """Wait until a host gets a packet from an address."""
    family = "ip6" if ":" in address else "ip"
    table = f"{family} overlay_witness"
    chain = f"type filter hook input priority 0; {family} saddr {address} counter;"
    host.nft(f"table {table} {{\n chain arriving {{\n {chain}\n }}\n}}\n")
    wait_until(
        lambda: "counter packets 0 " not in host.run(["nft", "list", "table", *table.split()]),
        f"{host.name} to hear from {address}",
        MEETING_SECONDS,
    )
