"""What links do to packets: MTU, rate, loss, one direction, delay, new addresses."""

import errno
import socket
import struct
import time

import pytest

from lab import Firewall, Host, Impairment, Nat, Network
from lab.probes import PATIENCE, arrives, listener, received, source, udp_socket, vanishes

pytestmark = pytest.mark.lab

BOTH = (4, 6)
IP_MTU_DISCOVER, IP_MTU, IP_PMTUDISC_DO = 10, 14, 2
IPV6_MTU_DISCOVER, IPV6_MTU = 23, 24


@pytest.mark.parametrize("family", BOTH)
@pytest.mark.parametrize("told", [True, False])
def test_a_small_link_in_the_middle_is_found_out_unless_routers_are_silent(family: int, told: bool) -> None:
    """Path MTU discovery, and its black hole."""
    with Network(families=BOTH) as network:
        a, b = network.host("a"), network.host("b")
        left, right = network.router("left"), network.router("right")
        network.link(a, left)
        network.link(left, right, mtu=1300)
        network.link(b, right)
        if not told:
            left.set_firewall(Firewall.PMTU_BLACK_HOLE)
        level = socket.IPPROTO_IP if family == 4 else socket.IPPROTO_IPV6
        discover, mtu = (IP_MTU_DISCOVER, IP_MTU) if family == 4 else (IPV6_MTU_DISCOVER, IPV6_MTU)
        with udp_socket(a, family=family) as sender, udp_socket(b, 9, family=family) as receiver:
            sender.setsockopt(level, discover, IP_PMTUDISC_DO)
            sender.connect((b.address(family), 9))
            sender.send(bytes(1400))
            assert received([receiver], 0) == []
            assert sender.getsockopt(level, mtu) == (1300 if told else 1500)
            assert sender.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == (errno.EMSGSIZE if told else 0)
            sender.send(bytes(1200))
            assert len(received([receiver], 1)) == 1


@pytest.mark.parametrize("family", BOTH)
def test_fragments_pass_until_they_are_blocked(family: int) -> None:
    """The kernel cuts a datagram that is larger than its own link."""
    with Network(families=BOTH) as network:
        a, b = network.host("a"), network.host("b")
        wire = network.link(a, b, mtu=1280)
        with udp_socket(a, family=family) as sender, udp_socket(b, 9, family=family) as receiver:
            sender.sendto(bytes(1400), (b.address(family), 9))
            assert len(received([receiver], 1)) == 1
            wire.block_fragments()
            sender.sendto(bytes(1400), (b.address(family), 9))
            sender.sendto(b"small", (b.address(family), 9))
            assert [data for data, *_ in received([receiver], 1)] == [b"small"]


def test_a_rate_holds_for_each_direction() -> None:
    """No faster than asked; and a hundred times the rate is faster."""
    size, rate = 100_000, 1e6
    with Network() as network:
        a, b = network.host("a"), network.host("b")
        wire = network.link(a, b, rate=(rate, 100 * rate))
        up, down = seconds_for(a, b, size), seconds_for(b, a, size)
        # The first packets pass in one burst.
        assert up > 0.9 * (size - 10_000) * 8 / rate
        assert down < up
        wire.set_rate(None)
        assert seconds_for(a, b, size) < up


def seconds_for(sender: Host, receiver: Host, size: int) -> float:
    """To send so many bytes over TCP, by the receiver's clock."""
    with listener(receiver, 9000) as server, sender.inside():
        client = socket.create_connection((receiver.address(4), 9000), timeout=PATIENCE)
        with client, server.accept()[0] as connection:
            begin = time.monotonic()
            client.sendall(bytes(size))
            client.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                continue
            return time.monotonic() - begin


def test_loss_is_as_asked_in_each_direction() -> None:
    """A fifth of four thousand is lost upwards, within five standard deviations; nothing downwards."""
    count = 4000
    with Network() as network:
        a, b = network.host("a"), network.host("b")
        wire = network.link(a, b)
        wire.set_loss((0.2, 0.0))
        tolerance = 5 * (count * 0.2 * 0.8) ** 0.5
        assert abs(lost(a, b, count, at_most=int(800 + tolerance)) - 800) < tolerance
        assert lost(b, a, count) == 0
        wire.set_loss(1.0)
        assert lost(b, a, 10, at_most=10) == 10
        wire.set_loss(0)
        assert lost(a, b, count) == 0


def lost(sender: Host, receiver: Host, count: int, *, at_most: int = 0) -> int:
    """How many of so many datagrams do not arrive; the rest is waited for."""
    with udp_socket(sender) as outgoing, udp_socket(receiver, 9) as incoming:
        incoming.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE: nothing may be lost but on the wire.
        for number in range(count):
            outgoing.sendto(struct.pack("!I", number), (receiver.address(4), 9))
        return count - len({data for data, *_ in received([incoming], count - at_most)})


@pytest.mark.parametrize("family", BOTH)
def test_one_way_is_one_way(family: int) -> None:
    """Also when nobody knows the other's hardware address yet."""
    with Network(families=BOTH) as network:
        a, b = network.host("a"), network.host("b")
        wire = network.link(a, b)
        wire.one_way("up")
        assert arrives(a, b, family)
        assert vanishes(b, a, family)
        wire.one_way("down")
        assert vanishes(a, b, family)
        assert arrives(b, a, family)
        wire.both_ways()
        assert arrives(a, b, family)


@pytest.mark.parametrize("family", BOTH)
def test_readdress_gives_a_new_address_and_takes_the_old_one(family: int) -> None:
    """What lies behind the link stays reachable."""
    with Network(families=BOTH) as network:
        a, b = network.host("a"), network.host("b")
        site = network.router("site")
        network.link(a, site)
        uplink = network.link(site, b)
        old = site.address(family)
        new = uplink.readdress(family)
        assert new == site.address(family) != old
        assert b.reaches(new, timeout=5)
        assert not b.reaches(old)
        assert arrives(a, b, family)
        assert arrives(b, a, family)


def test_readdress_of_a_nat_changes_what_is_seen_outside() -> None:
    """As when an access network gives a home a new address."""
    with Network() as network:
        a, b, home = network.host("a"), network.host("b"), network.router("home", nat=Nat.PORT_RESTRICTED)
        network.link(a, home)
        uplink = network.link(home, b)
        before = source(a, b)
        after = uplink.readdress()
        assert (before, after) == (str(uplink.subnets[4][2]), source(a, b))


def test_a_user_space_line_delays_and_can_be_changed() -> None:
    """No packet is faster than asked."""
    with Network(families=BOTH) as network:
        a, b = network.host("a"), network.host("b")
        wire = network.link(a, b, impairment=Impairment(delay=0.02))
        assert round_trip(a, b, 4) >= 0.04
        assert round_trip(a, b, 6) >= 0.04
        wire.impair((Impairment(delay=0.1), Impairment()))
        assert round_trip(a, b, 4) >= 0.1
        wire.down()
        assert not a.reaches(b.address(4))
        wire.up()
        assert a.reaches(b.address(4), timeout=5)
        wire.one_way("up")
        assert arrives(a, b)
        assert vanishes(b, a)


def round_trip(a: Host, b: Host, family: int) -> float:
    with udp_socket(a, 9, family=family) as here, udp_socket(b, 9, family=family) as there:
        begin = time.monotonic()
        here.sendto(b"ping", (b.address(family), 9))
        there.sendto(*there.recvfrom(100)[:2])
        here.recvfrom(100)
        return time.monotonic() - begin
