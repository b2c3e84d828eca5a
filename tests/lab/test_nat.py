"""Each kind of NAT, as an echo on two addresses and two ports sees it (RFC 4787, sections 4.1 and 5)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address, ip_network
from itertools import pairwise
from socket import socket
from typing import NamedTuple

import pytest

from lab import Host, Nat, Network, Router
from lab.probes import listener, received, tcp_outcomes, udp_socket

pytestmark = pytest.mark.lab

PORTS = (3478, 3479)


class Seen(NamedTuple):
    """What a NAT does, as seen from outside.

    Attributes:
        one_mapping: one socket has one outside address and port, whoever it writes to.
        same_port: the port outside is the one inside.
        let_in: who can write to a socket that has written to the first server's first port: "other port", "other host".
    """

    one_mapping: bool
    same_port: bool
    let_in: set[str]


EXPECTED = {
    Nat.FULL_CONE: Seen(one_mapping=True, same_port=True, let_in={"other port", "other host"}),
    Nat.ADDRESS_RESTRICTED: Seen(one_mapping=True, same_port=True, let_in={"other port"}),
    Nat.PORT_RESTRICTED: Seen(one_mapping=True, same_port=True, let_in=set()),
    Nat.PORT_RESTRICTED_REMAPPED: Seen(one_mapping=True, same_port=False, let_in=set()),
    Nat.SYMMETRIC: Seen(one_mapping=False, same_port=False, let_in=set()),
}


class Scene(NamedTuple):
    """A client behind NATs, the innermost first, and two servers."""

    client: Host
    nats: list[Router]
    servers: tuple[Host, Host]


@contextmanager
def scene(*kinds: Nat) -> Iterator[Scene]:
    with Network() as network:
        client, internet = network.host("client"), network.router("internet")
        nats = [network.router(f"nat-{number}", nat=kind) for number, kind in enumerate(kinds)]
        chain = [client, *nats, internet]
        for lower, upper in pairwise(chain):
            network.link(lower, upper)
        servers = network.host("one"), network.host("two")
        for server in servers:
            network.link(server, internet)
        yield Scene(client, nats, servers)


def look(client: Host, servers: tuple[Host, Host]) -> Seen:
    with ExitStack() as stack:
        echoes = {
            (server.address(4), port): stack.enter_context(udp_socket(server, port))
            for server in servers
            for port in PORTS
        }
        inside = stack.enter_context(udp_socket(client))
        sources = {source_of(inside, target, echo) for target, echo in echoes.items()}
        (first, known), (_, other_port), (_, other_host), _ = echoes.items()
        fresh = stack.enter_context(udp_socket(client))
        outside = source_of(fresh, first, known)
        for name, echo in (("known", known), ("other port", other_port), ("other host", other_host)):
            echo.sendto(name.encode(), outside)
        came = {data.decode() for data, *_ in received([fresh], 1)}
        assert "known" in came
        return Seen(len(sources) == 1, outside[1] == fresh.getsockname()[1], came - {"known"})


def source_of(inside: socket, target: tuple[str, int], echo: socket) -> tuple[str, int]:
    """Write to a server, be answered, and return where it has seen the datagram come from."""
    inside.sendto(b"question", target)
    _, (address, port) = echo.recvfrom(100)
    echo.sendto(b"answer", (address, port))
    assert inside.recvfrom(100) == (b"answer", target)
    return address, port


@pytest.mark.parametrize("kind", Nat)
def test_maps_and_filters_as_its_kind_says(kind: Nat) -> None:
    """Mapping and filtering, by datagrams."""
    with scene(kind) as (client, (router,), servers):
        assert look(client, servers) == EXPECTED[kind]
        assert ip_address(client.address(4)) in ip_network("10.0.0.0/8")
        assert ip_address(router.address(4)) in ip_network("198.18.0.0/15")


@pytest.mark.parametrize("kind", Nat)
def test_nobody_outside_can_begin(kind: Nat) -> None:
    """Neither to the router's address nor to an address behind it; connections go out only."""
    with scene(kind) as (client, (router,), (server, _)), listener(client, 9000), listener(server, 9000) as listening:
        assert tcp_outcomes(client, [(server.address(4), 9000)], answers=1) == ["connected"]
        accepted, source = listening.accept()
        accepted.close()
        assert source[0] == router.address(4)
        assert tcp_outcomes(server, [(router.address(4), 9000)], answers=0) == ["silent"]
        with udp_socket(client, 9000) as inside, udp_socket(server) as outside:
            outside.sendto(b"knock", (router.address(4), 9000))
            assert received([inside], 0) == []


@pytest.mark.parametrize("outer", Nat)
def test_behind_a_carrier_the_outer_one_decides(outer: Nat) -> None:
    """A full cone at home does not help, and does not hurt."""
    with scene(Nat.FULL_CONE, outer) as (client, (home, carrier), servers):
        assert look(client, servers) == EXPECTED[outer]
        assert ip_address(client.address(4)) in ip_network("10.0.0.0/8")
        assert ip_address(home.address(4)) in ip_network("100.64.0.0/10")
        assert ip_address(carrier.address(4)) in ip_network("198.18.0.0/15")


@pytest.mark.parametrize("kind", Nat)
def test_forgetting_ends_the_mapping(kind: Nat) -> None:
    """What came in before is dropped, and the next datagram from inside makes a new mapping."""
    with scene(kind) as (client, (router,), (server, _)), udp_socket(client) as inside, udp_socket(server, 9) as echo:
        target = server.address(4), 9
        sources = [source_of(inside, target, echo)]
        # A kind that remaps picks among ten thousand ports: three times the same one does not happen.
        for _ in range(3):
            router.forget()
            echo.sendto(b"late", sources[-1])
            assert received([inside], 0) == []
            sources.append(source_of(inside, target, echo))
        assert (len(set(sources)) == 1) == EXPECTED[kind].same_port


def test_ipv6_is_routed_through_a_nat_untranslated() -> None:
    """And from outside, too."""
    with Network(families=(4, 6)) as network:
        client, server = network.host("client"), network.host("server")
        home = network.router("home", nat=Nat.SYMMETRIC)
        network.link(client, home)
        network.link(home, server)
        with udp_socket(client, 9, family=6) as inside, udp_socket(server, 9, family=6) as outside:
            outside.sendto(b"hello", (client.address(6), 9))
            assert inside.recvfrom(100)[1][:2] == (server.address(6), 9)
