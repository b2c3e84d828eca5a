"""Control messages: what the kernel says beside a datagram, read and written as Linux lays it out."""

import errno
import socket
import struct

import pytest

from overlay.transports.ancillary import (
    IN6_PKTINFO,
    IN_PKTINFO,
    IP_PKTINFO,
    IP_RECVERR,
    IPV6_PKTINFO,
    IPV6_RECVERR,
    MAX_LOCALS,
    SOL_UDP,
    UDP_GRO,
    UDP_SEGMENT,
    Local,
    Locals,
    segment_control,
    segment_size,
    unreachable,
    without_flow,
)


def pktinfo(source: str, found: str) -> tuple[int, int, bytes]:
    return socket.IPPROTO_IP, IP_PKTINFO, IN_PKTINFO.pack(3, socket.inet_aton(source), socket.inet_aton(found))


def pktinfo6(host: str, index: int) -> tuple[int, int, bytes]:
    return socket.IPPROTO_IPV6, IPV6_PKTINFO, IN6_PKTINFO.pack(socket.inet_pton(socket.AF_INET6, host), index)


def recverr(level: int, kind: int, code: int, origin: int, icmp: int) -> tuple[int, int, bytes]:
    # A sockaddr of whoever complains follows the structure.
    return level, kind, struct.pack("=IBBBxII", code, origin, icmp, 0, 0, 0) + bytes(16)


@pytest.mark.parametrize(
    ("message", "host", "index"),
    [
        (pktinfo("192.0.2.1", "192.0.2.1"), "192.0.2.1", 0),
        # To a group: the answer leaves from the interface's own address.
        (pktinfo("192.0.2.1", "224.0.0.251"), "192.0.2.1", 0),
        (pktinfo6("2001:db8::1", 3), "2001:db8::1", 0),
        # Without its interface a link-local address says nothing.
        (pktinfo6("fe80::1", 3), "fe80::1", 3),
    ],
)
def test_our_address_is_read(message: tuple[int, int, bytes], host: str, index: int) -> None:
    """Among other messages, and as the same object each time."""
    locals_ = Locals()
    found = locals_.read([(socket.SOL_SOCKET, 99, b"?"), message])
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    assert found == Local(message[0], message[1], socket.inet_pton(family, host), index)
    assert locals_.read([message]) is found
    assert locals_.read([]) is None


def test_few_of_our_addresses_are_remembered() -> None:
    """Who can send to many of ours, as in a routed prefix, must not fill our memory."""
    locals_ = Locals()
    for number in range(3 * MAX_LOCALS):
        locals_.read([pktinfo("192.0.2.1", f"10.0.{number >> 8}.{number & 255}")])
        assert len(locals_._known) <= MAX_LOCALS


def test_ipv6_control_messages_name_the_interface_only_when_asked() -> None:
    """Otherwise the routing table decides."""
    host = socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    local = Local(socket.IPPROTO_IPV6, IPV6_PKTINFO, host, 0)
    assert local.control() == (socket.IPPROTO_IPV6, IPV6_PKTINFO, IN6_PKTINFO.pack(host, 0))


def test_ipv4_control_messages_name_the_source() -> None:
    """`ipi_spec_dst`, not the destination that was found (ip(7))."""
    local = Local(socket.IPPROTO_IP, IP_PKTINFO, b"\x0a\0\0\x01", 0)
    assert local.control() == (socket.IPPROTO_IP, IP_PKTINFO, bytes(4) + b"\x0a\0\0\x01" + bytes(4))


def test_sizes_of_segments() -> None:
    """16 bits outwards, an int inwards; without a message there is one datagram."""
    assert segment_control(1400) == (SOL_UDP, UDP_SEGMENT, struct.pack("=H", 1400))
    gro = (SOL_UDP, UDP_GRO, struct.pack("=i", 1400))
    assert segment_size([pktinfo("10.0.0.1", "10.0.0.1"), gro], 5000) == 1400
    assert segment_size([pktinfo("10.0.0.1", "10.0.0.1")], 5000) == 5000
    # Nothing is cut into pieces of no bytes.
    assert segment_size([(SOL_UDP, UDP_GRO, bytes(4))], 5000) == 1


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (recverr(socket.IPPROTO_IP, IP_RECVERR, errno.ECONNREFUSED, 2, 3), errno.ECONNREFUSED),
        (recverr(socket.IPPROTO_IPV6, IPV6_RECVERR, errno.ECONNREFUSED, 3, 1), errno.ECONNREFUSED),
        # Fragmentation needed: the host is there.
        (recverr(socket.IPPROTO_IP, IP_RECVERR, errno.EMSGSIZE, 2, 3), None),
        # Time exceeded; a local error; another kind of message.
        (recverr(socket.IPPROTO_IP, IP_RECVERR, errno.EHOSTUNREACH, 2, 11), None),
        (recverr(socket.IPPROTO_IP, IP_RECVERR, errno.EMSGSIZE, 1, 3), None),
        (recverr(socket.IPPROTO_IP, 99, errno.ECONNREFUSED, 2, 3), None),
    ],
)
def test_reports_that_nobody_is_there(message: tuple[int, int, bytes], expected: int | None) -> None:
    """RFC 792 and RFC 4443: only Destination Unreachable says so."""
    assert unreachable([message]) == expected


def test_flow_labels_are_no_part_of_an_address() -> None:
    """A peer may change it with every packet."""
    assert without_flow(("::1", 5, 77, 2)) == ("::1", 5, 0, 2)
    assert without_flow(("::1", 5, 0, 2)) == ("::1", 5, 0, 2)
    assert without_flow(("10.0.0.1", 5)) == ("10.0.0.1", 5)
