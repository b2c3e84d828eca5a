"""What networks do as a whole: addresses, routes, mistakes, restarts, seen by real packets between hosts."""

import errno
import itertools
import os
import socket
from pathlib import Path

import pytest

from lab import Firewall, Host, Impairment, LabError, Link, Nat, Network
from lab.kernel import NAMESPACES
from lab.leftovers import namespace_name
from lab.probes import FAMILIES, arrives, received, source, tcp_outcomes, udp_socket, vanishes

pytestmark = pytest.mark.lab

BOTH = (4, 6)


def namespaces_of_this_process() -> list[str]:
    prefix = namespace_name(0, "").removesuffix("0-")
    return [path.name for path in NAMESPACES.glob(f"{prefix}*")]


def pair(network: Network) -> tuple[Host, Host, Link]:
    a, b = network.host("a"), network.host("b")
    return a, b, network.link(a, b)


def test_everybody_reaches_everybody_in_whichever_order_the_tree_is_built() -> None:
    """Routes are given from the bottom up and from the top down."""
    with Network(families=BOTH) as network:
        internet, early, late = (network.router(name) for name in ("internet", "early", "late"))
        hosts = [network.host(name) for name in ("a", "b", "c")]
        network.link(hosts[0], early)
        network.link(early, internet)
        network.link(late, internet)
        network.link(hosts[1], late)
        network.link(hosts[2], internet)
        for one, other in itertools.permutations(hosts, 2):
            for family in BOTH:
                assert one.reaches(other.address(family), timeout=5)


def test_leaving_deletes_everything_even_when_building_has_failed() -> None:
    """Halfway through a link, and halfway through a host."""
    with pytest.raises(LabError, match="mtu"), Network() as network:
        pair(network)
        assert len(namespaces_of_this_process()) == 2
        network.link(network.host("c"), network.host("d"), mtu=5)
    assert namespaces_of_this_process() == []


def test_a_host_that_cannot_be_made_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its namespace exists already when its loopback fails."""

    def fail(*_: str) -> None:
        raise LabError("no loopback")

    monkeypatch.setattr(Host, "ip", fail)
    with pytest.raises(LabError, match="no loopback"), Network() as network:
        network.host("a")
    assert namespaces_of_this_process() == []


def test_two_networks_of_one_process_are_apart() -> None:
    """The same names and the same addresses, and nothing passes between them."""
    with Network() as one, Network() as two:
        a, b, _ = pair(one)
        c, d, wire = pair(two)
        wire.down()
        assert a.address(4) == c.address(4)
        assert a.reaches(b.address(4), timeout=5)
        assert not c.reaches(d.address(4))


def test_mistakes_are_named() -> None:
    """Each in one line that says what to do."""
    with Network() as network:
        a, b, wire = pair(network)
        with pytest.raises(LabError, match="close a circle"):
            network.link(b, a)
        with pytest.raises(LabError, match="already"):
            network.host("a")
        with pytest.raises(LabError, match="cannot name a host"):
            network.host("A b")
        with pytest.raises(LabError, match="IPv6 address"):
            a.address(6)
        with pytest.raises(LabError, match="no address yet"):
            network.host("c").address(4)
        with pytest.raises(LabError, match=r"use \(4,\), \(6,\) or \(4, 6\)"):
            Network(families=(5,))
        wire.down()
        with pytest.raises(LabError, match="call up"):
            wire.readdress()
        with pytest.raises(LabError, match="plain one"):
            wire.impair(Impairment())
    with pytest.raises(LabError, match="is gone"), a.inside():
        pass
    with Network(families=BOTH) as network, pytest.raises(LabError, match="too small for IPv6"):
        network.link(network.host("a"), network.host("b"), mtu=1279)


def test_a_link_that_is_down_takes_its_routes_along_and_comes_back() -> None:
    """A host with a second uplink goes on over that one."""
    with Network(families=BOTH) as network:
        a, b, internet = network.host("a"), network.host("b"), network.router("internet")
        first, _ = network.link(a, internet), network.link(b, internet)
        with udp_socket(a) as sender:
            first.down()
            with pytest.raises(OSError, match=os.strerror(errno.ENETUNREACH)):
                sender.sendto(b"lost", (b.address(4), 9))
        first.up()
        assert all(arrives(a, b, family) and arrives(b, a, family) for family in BOTH)
        second = network.link(a, internet, metric=200)
        assert source(a, b) == first.address(a, 4)
        first.down()
        assert source(a, b) == second.address(a, 4)
        first.up()
        assert source(a, b) == first.address(a, 4)


def test_a_restarted_router_has_forgotten_its_connections_and_kept_its_settings() -> None:
    """The firewall is the same, the mapping is not, the wire still loses."""
    with Network() as network:
        a, b = network.host("a"), network.host("b")
        home = network.router("home", nat=Nat.PORT_RESTRICTED)
        network.link(a, home)
        uplink = network.link(home, b)
        home.set_firewall(Firewall.TCP_RESET)
        with udp_socket(a, 9) as inside, udp_socket(b, 9) as outside:
            inside.sendto(b"question", (b.address(4), 9))
            _, mapped = outside.recvfrom(100)
            home.restart()
            outside.sendto(b"answer", mapped)
            assert received([inside], 0) == []
        assert arrives(a, b)
        assert tcp_outcomes(a, [(b.address(4), 9000)], answers=1) == ["refused"]
        uplink.set_loss(1.0)
        home.restart()
        assert vanishes(a, b)


def test_a_line_that_cannot_be_made_leaves_nothing() -> None:
    """Its process neither."""
    with pytest.raises(LabError), Network() as network:
        network.link(network.host("a"), network.host("b"), mtu=5, impairment=Impairment())
    assert namespaces_of_this_process() == []


def test_a_router_with_two_uplinks_is_found_over_the_one_that_is_left() -> None:
    """In both directions."""
    with Network(families=BOTH) as network:
        a, b = network.host("a"), network.host("b")
        site, internet = network.router("site"), network.router("internet")
        network.link(a, site)
        links = [network.link(site, internet, metric=metric) for metric in (100, 200)]
        network.link(b, internet)
        for link in links:
            link.down()
            assert all(arrives(a, b, family) and arrives(b, a, family) for family in BOTH)
            link.up()


def test_sysctls_are_the_hosts_own() -> None:
    """And the machine's own stay as they are."""
    name = "net/ipv4/ip_default_ttl"
    with Network() as network:
        a = network.host("a")
        a.sysctl(name, 7)
        with a.inside():
            assert Path("/proc/sys", name).read_text(encoding="ascii") == "7\n"
        assert Path("/proc/sys", name).read_text(encoding="ascii") != "7\n"


def test_families_have_their_sockets() -> None:
    """A network of one family has no addresses of the other."""
    with Network(families=(6,)) as network:
        a, b, _ = pair(network)
        assert arrives(a, b, 6)
        with a.inside(), socket.socket(FAMILIES[4], socket.SOCK_DGRAM) as sock, pytest.raises(OSError):
            sock.sendto(b"lost", ("198.18.0.1", 9))
