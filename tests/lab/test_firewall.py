"""Each firewall against real datagrams and connections, of both families, in both directions."""

from collections.abc import Iterator
from contextlib import ExitStack
from socket import create_connection
from typing import NamedTuple

import pytest

from lab import Firewall, Host, Network, Router
from lab.probes import PATIENCE, Outcome, listener, received, tcp_outcomes, udp_socket

pytestmark = pytest.mark.lab

DATAGRAMS = {
    "short": b"\x40" + bytes(40),
    "v1": b"\xc0\x00\x00\x00\x01" + bytes(40),
    "v2": b"\xd0\x6b\x33\x43\xcf" + bytes(40),
    "v9": b"\xc0\x00\x00\x00\x09" + bytes(40),
    "to 443": b"\x40 for port 443",
}
"""By name; all but the last go to port 9000."""

ALL = set(DATAGRAMS)


class Expected(NamedTuple):
    """Which datagrams pass, and how connecting to the ports 9000 and 443 goes."""

    datagrams: set[str]
    tcp: list[Outcome]


EXPECTED = {
    Firewall.OPEN: Expected(ALL, ["connected", "connected"]),
    Firewall.UDP_BLOCKED: Expected(set(), ["connected", "connected"]),
    Firewall.QUIC_RECOGNISED: Expected({"short", "v9", "to 443"}, ["connected", "connected"]),
    Firewall.LONG_HEADERS_BLOCKED: Expected({"short", "to 443"}, ["connected", "connected"]),
    Firewall.TCP_BLOCKED: Expected(ALL, ["silent", "silent"]),
    Firewall.TCP_RESET: Expected(ALL, ["refused", "refused"]),
    Firewall.ONLY_PORT_443: Expected({"to 443"}, ["silent", "connected"]),
    Firewall.ONLY_TCP_443: Expected(set(), ["silent", "connected"]),
    Firewall.PMTU_BLACK_HOLE: Expected(ALL, ["connected", "connected"]),
}
NOTHING = Expected(set(), ["silent", "silent"])


class Between(NamedTuple):
    """Two hosts with a router between them."""

    hosts: tuple[Host, Host]
    router: Router


@pytest.fixture(scope="module")
def between() -> Iterator[Between]:
    with Network(families=(4, 6)) as network:
        hosts = network.host("a"), network.host("b")
        router = network.router("internet")
        for host in hosts:
            network.link(host, router)
        yield Between(hosts, router)


def check(sender: Host, receiver: Host, family: int, expected: Expected) -> None:
    """Send everything, and compare what arrives."""
    address = receiver.address(family)
    answers = len(expected.tcp) - expected.tcp.count("silent")
    with ExitStack() as stack:
        ports = [stack.enter_context(udp_socket(receiver, port, family=family)) for port in (9000, 443)]
        outgoing = stack.enter_context(udp_socket(sender, family=family))
        for port in (9000, 443):
            stack.enter_context(listener(receiver, port, family=family))
        for name, data in DATAGRAMS.items():
            outgoing.sendto(data, (address, 443 if name == "to 443" else 9000))
        came = {data for data, *_ in received(ports, len(expected.datagrams))}
        assert {name for name, data in DATAGRAMS.items() if data in came} == expected.datagrams
        assert tcp_outcomes(sender, [(address, 9000), (address, 443)], answers=answers) == expected.tcp


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("firewall", EXPECTED, ids=lambda firewall: firewall.name)
def test_drops_what_its_description_says_and_nothing_else(between: Between, firewall: Firewall, family: int) -> None:
    """In both directions, for both families alike."""
    a, b = between.hosts
    between.router.set_firewall(firewall)
    check(a, b, family, EXPECTED[firewall])
    check(b, a, family, EXPECTED[firewall])


@pytest.mark.parametrize(("firewall", "dead"), [(Firewall.IPV4_BLACK_HOLE, 4), (Firewall.IPV6_BLACK_HOLE, 6)])
def test_a_black_hole_swallows_one_family_without_an_error(between: Between, firewall: Firewall, dead: int) -> None:
    """The other family is untouched."""
    a, b = between.hosts
    between.router.set_firewall(firewall)
    check(a, b, dead, NOTHING)
    check(a, b, 10 - dead, EXPECTED[Firewall.OPEN])


@pytest.mark.parametrize("family", [4, 6])
def test_rule_sets_compose(between: Between, family: int) -> None:
    """A packet must pass each of them, and replacing them leaves nothing behind."""
    a, b = between.hosts
    between.router.set_firewall(Firewall.QUIC_RECOGNISED, Firewall.TCP_RESET)
    check(a, b, family, Expected({"short", "v9", "to 443"}, ["refused", "refused"]))
    between.router.set_firewall()
    check(a, b, family, EXPECTED[Firewall.OPEN])


@pytest.mark.parametrize("family", [4, 6])
def test_nothing_inbound_lets_answers_in(between: Between, family: int) -> None:
    """Who is inside begins and is answered, who is outside cannot begin."""
    a, b = between.hosts
    between.router.set_firewall(Firewall.nothing_inbound(b.uplinks[0].interface(between.router)))
    check(b, a, family, NOTHING)
    check(a, b, family, EXPECTED[Firewall.OPEN])
    with udp_socket(a, family=family) as inside, udp_socket(b, 9000, family=family) as outside:
        inside.sendto(b"question", (b.address(family), 9000))
        _, source = outside.recvfrom(100)
        outside.sendto(b"answer", source)
        assert inside.recvfrom(100)[0] == b"answer"


@pytest.mark.parametrize("family", [4, 6])
def test_one_way_drops_answers_too(between: Between, family: int) -> None:
    """Datagrams pass one way; a connection needs both."""
    a, b = between.hosts
    between.router.set_firewall(Firewall.one_way(b.uplinks[0].interface(between.router)))
    check(a, b, family, Expected(ALL, ["silent", "silent"]))
    check(b, a, family, NOTHING)


def test_an_established_connection_feels_a_new_firewall(between: Between) -> None:
    """A reset reaches who sends."""
    a, b = between.hosts
    between.router.set_firewall()
    with listener(b, 9000) as server, a.inside():
        client = create_connection((b.address(4), 9000), timeout=PATIENCE)
        with client, server.accept()[0]:
            between.router.set_firewall(Firewall.TCP_RESET)
            client.sendall(b"late")
            with pytest.raises(ConnectionResetError):
                client.recv(1)
