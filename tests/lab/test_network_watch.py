"""The watch in a host of its own, while that host's network really changes."""

import json
import sys
from typing import Any

import pytest

from lab import Host, Network, Process

pytestmark = pytest.mark.lab

PROGRAM = """
import asyncio, json, sys
import uvloop
from overlay import network_watch
from overlay.network_watch import NetworkWatch

how, *interfaces = sys.argv[1:]
if how == "polling":
    network_watch._subscribe = lambda: None
    network_watch.INTERVAL = 0.1
else:
    # Nothing but a message causes a look.
    network_watch.INTERVAL = 1e6

def tell(change):
    lists = {"gained": sorted(change.gained), "lost": sorted(change.lost)}
    print(json.dumps({**lists, "default": list(change.default.values()), "fingerprint": watch.fingerprint()}))

async def main():
    global watch
    watch = NetworkWatch(tell, interfaces=tuple(interfaces))
    async with watch:
        print("watching", watch.fingerprint())
        await asyncio.Event().wait()

with asyncio.Runner(loop_factory=uvloop.new_event_loop if how == "uvloop" else None) as runner:
    runner.run(main())
"""
HOW = ("netlink", "uvloop", "polling")


class Watched:
    """A host with two uplinks, of which the first has the better default route, and the watch inside."""

    def __init__(self, network: Network, how: str, *interfaces: str) -> None:
        self.host = network.host("a")
        router = network.router("internet")
        self.first = network.link(self.host, router)
        self.second = network.link(self.host, router, metric=200)
        self.process = start(self.host, how, *interfaces)

    def sources(self, link: Any) -> list[str]:
        return [link.address(self.host, family) for family in (4, 6)]

    def told(self) -> dict[str, Any]:
        return dict(json.loads(self.process.line()))

    def until(self, **wanted: object) -> tuple[set[str], set[str]]:
        """Wait for a state after which these hold; a change may come in several parts.

        Returns:
            What was gained and what was lost on the way.
        """
        gained, lost = set[str](), set[str]()
        while True:
            change = self.told()
            gained |= set(change["gained"])
            lost |= set(change["lost"])
            found = {"gained": sorted(gained), "lost": sorted(lost)} | {
                name: change[name] for name in ("default", "fingerprint")
            }
            if all(found[name] == value for name, value in wanted.items()):
                return gained, lost


def start(host: Host, how: str, *interfaces: str) -> Process:
    process = host.start([sys.executable, "-c", PROGRAM, how, *interfaces])
    process.line("watching")
    return process


def global_ones(hosts: set[str]) -> set[str]:
    return {host for host in hosts if not host.startswith("fe80:")}


@pytest.mark.parametrize("how", HOW)
def test_an_address_that_comes_and_goes(how: str) -> None:
    with Network(families=(4, 6)) as network:
        watched = Watched(network, how)
        for change, name in (("add", "gained"), ("del", "lost")):
            for address in ("203.0.113.9/24", "2001:db8:ffff::9/64"):
                extra = " nodad" if change == "add" and ":" in address else ""
                watched.host.ip(f"addr {change} {address} dev eth1{extra}")
                told = watched.told()
                assert told[name] == [address.partition("/")[0]]
                assert told["default"] == watched.sources(watched.first)


@pytest.mark.parametrize("how", HOW)
def test_the_default_route_moves_without_any_address_doing_so(how: str) -> None:
    with Network(families=(4, 6)) as network:
        watched = Watched(network, how)
        default = watched.sources(watched.first)
        for change, link in (("add", watched.second), ("del", watched.first)):
            # One family after the other: each has messages of its own.
            for index, family in enumerate((4, 6)):
                gateway = watched.second.address(watched.second.upper, family)
                watched.host.ip(f"route {change} default via {gateway} dev eth1 metric 50")
                default[index] = link.address(watched.host, family)
                told = watched.told()
                assert (told["gained"], told["lost"], told["default"]) == ([], [], default)


@pytest.mark.parametrize("how", HOW)
def test_a_link_that_goes_down_and_comes_up_again(how: str) -> None:
    with Network(families=(4, 6)) as network:
        watched = Watched(network, how)
        first, second = (watched.sources(link) for link in (watched.first, watched.second))
        watched.first.down()
        _, lost = watched.until(default=second, fingerprint=fingerprint(second))
        assert global_ones(lost) == set(first)
        watched.first.up()
        gained, _ = watched.until(default=first, fingerprint=fingerprint(first))
        assert global_ones(gained) <= set(first)


def fingerprint(sources: list[str]) -> str:
    ipv4, ipv6 = sources
    return f"{ipv4.rpartition('.')[0]}.0/24 {ipv6.partition('::')[0]}::/64"


def test_a_rule_that_sends_packets_another_way() -> None:
    """As virtual private networks do: no address and no route changes."""
    with Network(families=(4, 6)) as network:
        watched = Watched(network, "netlink")
        default = watched.sources(watched.first)
        for index, family in enumerate((4, 6)):
            gateway = watched.second.address(watched.second.upper, family)
            ip = ["ip", f"-{family}"]
            watched.host.run([*ip, *f"route add default via {gateway} dev eth1 table 7".split()])
            for change, link in (("add", watched.second), ("del", watched.first)):
                watched.host.run([*ip, *f"rule {change} priority 7 table 7".split()])
                default[index] = link.address(watched.host, family)
                told = watched.told()
                assert (told["gained"], told["lost"], told["default"]) == ([], [], default)


def test_a_cable_that_is_pulled_at_the_other_end() -> None:
    """No address and no route goes, but the carrier."""
    with Network() as network:
        watched = Watched(network, "netlink")
        lost = watched.second.address(watched.host, 4)
        watched.second.upper.ip(f"link set {watched.second.interface(watched.second.upper)} down")
        told = watched.told()
        while not told["lost"]:
            told = watched.told()
        assert lost in told["lost"]


def test_temporary_and_deprecated_addresses_come_and_go_unnoticed() -> None:
    """The kernel makes a temporary one for each managed prefix (RFC 8981)."""
    with Network(families=(4, 6)) as network:
        watched = Watched(network, "netlink")
        watched.host.sysctl("net/ipv6/conf/eth1/use_tempaddr", 2)
        watched.host.ip("addr add 2001:db8:ffff::9/64 dev eth1 nodad mngtmpaddr")
        assert watched.told()["gained"] == ["2001:db8:ffff::9"]
        temporary = watched.host.run(["ip", "-6", "-oneline", "address", "show", "dev", "eth1", "temporary"])
        assert "2001:db8:ffff:" in temporary
        watched.host.ip("addr del 2001:db8:ffff::9/64 dev eth1")
        told = watched.told()
        assert (told["gained"], told["lost"]) == ([], ["2001:db8:ffff::9"])
        # A deprecated address is as good as none.
        watched.host.ip("addr add 2001:db8:ffff::a/64 dev eth1 nodad")
        assert watched.told()["gained"] == ["2001:db8:ffff::a"]
        watched.host.ip("addr change 2001:db8:ffff::a/64 dev eth1 preferred_lft 0")
        assert watched.told()["lost"] == ["2001:db8:ffff::a"]


def test_a_temporary_address_from_which_packets_leave_is_noticed() -> None:
    with Network(families=(4, 6)) as network:
        watched = Watched(network, "netlink")
        watched.host.sysctl("net/ipv6/conf/eth0/use_tempaddr", 2)
        subnet = watched.first.subnets[6]
        watched.host.ip(f"addr add {subnet[9]}/64 dev eth0 nodad mngtmpaddr")
        source = watched.told()["default"][1]
        while source in {str(subnet[2]), str(subnet[9])}:
            source = watched.told()["default"][1]
        temporary = watched.host.run(["ip", "-6", "-oneline", "address", "show", "dev", "eth0", "temporary"])
        assert f" {source}/64 " in temporary


def test_loopback_is_no_news_and_a_label_hides_no_address() -> None:
    with Network() as network:
        watched = Watched(network, "netlink")
        watched.host.ip("addr add 127.0.0.9/8 dev lo", "addr add 203.0.113.1/32 dev lo")
        assert watched.told()["gained"] == ["203.0.113.1"]
        watched.host.ip("addr add 203.0.113.2/32 dev eth0 label eth0:1")
        assert watched.told()["gained"] == ["203.0.113.2"]


def test_other_interfaces_than_the_wanted_ones_do_not_count() -> None:
    """The default source is that of a socket tied to the wanted one, whatever the machine prefers."""
    with Network() as network:
        watched = Watched(network, "netlink", "eth1")
        watched.host.ip("addr add 203.0.113.1/32 dev eth0")
        watched.host.ip("addr add 203.0.113.2/32 dev eth1")
        told = watched.told()
        assert told["gained"] == ["203.0.113.2"]
        assert told["default"] == [watched.second.address(watched.host, 4), None]


def test_a_storm_of_messages_ends_with_the_truth() -> None:
    """Far more than the buffer holds: most of them are lost, and what there is in the end is told nevertheless."""
    with Network() as network:
        watched = Watched(network, "netlink")
        many = [f"203.0.113.{number}" for number in range(1, 201)]
        watched.host.ip(*(f"addr add {address}/32 dev eth0" for address in many))
        watched.until(gained=sorted(many))
        routes = [f"route add 198.51.100.{number}/32 dev eth1" for number in range(1, 201)]
        watched.host.ip(*routes, *(f"addr del {address}/32 dev eth0" for address in many[1:]))
        watched.until(lost=sorted(many[1:]))
