"""Ancillary data: what the kernel says beside a datagram, and is told beside one (RFC 3542, ip(7), udp(7)).

Three things on Linux: which of our addresses a datagram came to or is to leave from (PKTINFO), how long the datagrams
of a burst are (UDP_SEGMENT outwards, "GSO"; UDP_GRO inwards), and whose datagram an ICMP error is about (RECVERR).
Elsewhere only the first exists. Each is a control message: a level, a type, and a C structure.
"""

import errno
import socket
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from overlay.addresses import Address

SocketAddress = tuple[Any, ...]
"""(host, port), for IPv6 (host, port, 0, scope id): as the socket module takes it, with flow labels removed."""
ControlMessage = tuple[int, int, bytes]

IP_PKTINFO: Final[int] = getattr(socket, "IP_PKTINFO", 8)
"""The number on Linux; Python names it from 3.14 on."""
IPV6_PKTINFO: Final[int] = getattr(socket, "IPV6_PKTINFO", 50)
IN_PKTINFO: Final = struct.Struct("=i4s4s")
"""struct in_pktinfo: interface index, source address to use, destination address found (ip(7))."""
IN6_PKTINFO: Final = struct.Struct("=16si")
"""struct in6_pktinfo: address, interface index (RFC 3542 section 6.1)."""

IP_RECVERR: Final = 11
"""The numbers on Linux (linux/in.h, linux/in6.h); Python names IP_RECVERR from 3.14 on."""
IPV6_RECVERR: Final = 25
EXTENDED_ERROR: Final = struct.Struct("=IBBBxII")
"""struct sock_extended_err: errno, origin, ICMP type, ICMP code, info, data (recv(2))."""
UNREACHABLE: Final = frozenset({(2, 3), (3, 1)})
"""Origin and type: Destination Unreachable of ICMP (RFC 792) and of ICMPv6 (RFC 4443)."""

SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
"""The numbers on Linux (linux/udp.h); Python does not name them."""
SEGMENT_SIZE: Final = struct.Struct("=H")
GRO_SIZE: Final = struct.Struct("=i")

CONTROL_SPACE: Final = 128
"""Bytes for the control messages of one read: IN6_PKTINFO and GRO_SIZE with their headers take 64."""
ERROR_SPACE: Final = 512
"""The same for the error queue: the structure, and the address of whoever sent the ICMP message."""
MAX_LOCALS: Final = 64
"""Addresses of ours that are remembered ready-made; a router has a few."""


@dataclass(frozen=True, slots=True)
class Local:
    """Our own address that a datagram came to."""

    level: int
    kind: int
    host: bytes
    """4 or 16 bytes."""
    index: int
    """Of the interface; only kept for link-local addresses, as otherwise the routing table knows better."""

    def control(self) -> ControlMessage:
        """The control message that makes a datagram leave from this address."""
        if self.kind == IP_PKTINFO and self.level == socket.IPPROTO_IP:
            return self.level, self.kind, IN_PKTINFO.pack(self.index, self.host, bytes(4))
        return self.level, self.kind, IN6_PKTINFO.pack(self.host, self.index)


class Locals:
    """Reads our addresses from control messages; the same message gives the same object."""

    def __init__(self) -> None:
        self._known: dict[bytes, Local] = {}

    def read(self, control: Iterable[ControlMessage]) -> Local | None:
        """Where a datagram came to; None when the kernel does not say, as the socket is bound to one address."""
        for level, kind, data in control:
            known = self._known.get(data)
            if known is not None:
                return known
            local = _local(level, kind, data)
            if local is not None:
                if len(self._known) >= MAX_LOCALS:
                    self._known.clear()
                self._known[data] = local
                return local
        return None


def segment_control(size: int) -> ControlMessage:
    """The control message that makes the kernel cut what is sent into datagrams of `size` bytes."""
    return SOL_UDP, UDP_SEGMENT, SEGMENT_SIZE.pack(size)


def segment_size(control: Iterable[ControlMessage], size: int) -> int:
    """The length of each datagram, but perhaps the last, in a read of `size` bytes."""
    for level, kind, data in control:
        if kind == UDP_GRO and level == SOL_UDP:
            return max(1, int(GRO_SIZE.unpack(data)[0]))
    return size


def unreachable(control: Iterable[ControlMessage]) -> int | None:
    """The errno of a report from the error queue that nobody can be reached there; None if it says something else."""
    for level, kind, data in control:
        if (level, kind) not in {(socket.IPPROTO_IP, IP_RECVERR), (socket.IPPROTO_IPV6, IPV6_RECVERR)}:
            continue
        code, origin, icmp, *_ = EXTENDED_ERROR.unpack_from(data)
        # "Fragmentation needed" has the same type: the host is there.
        if (origin, icmp) in UNREACHABLE and code != errno.EMSGSIZE:
            return int(code)
    return None


def has_udp_option(sock: socket.socket, option: int, value: int) -> bool:
    """Set an option of UDP, if the system has it."""
    if sys.platform != "linux":
        return False
    try:
        sock.setsockopt(SOL_UDP, option, value)
    except OSError:
        return False
    return True


def socket_address(address: Address) -> SocketAddress:
    """Where to send to, in the very form in which the kernel will name the sender of an answer: aioquic compares.

    Raises:
        AddressError: the host is a name.
        OSError: no interface has the zone's name.
    """
    host, *rest = address.sockaddr()
    family = socket.AF_INET6 if address.family == 6 else socket.AF_INET
    return (socket.inet_ntop(family, socket.inet_pton(family, str(host))), *rest)


def without_flow(remote: SocketAddress) -> SocketAddress:
    """The address without a flow label, which is no part of who a peer is."""
    return (remote[0], remote[1], 0, remote[3]) if len(remote) == 4 and remote[2] else remote


def _local(level: int, kind: int, data: bytes) -> Local | None:
    if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
        _, source, found = IN_PKTINFO.unpack(data[: IN_PKTINFO.size])
        # The header's destination is a group or broadcast address when the two differ in class.
        return Local(level, kind, source if found[0] >= 224 else found, 0)
    if level == socket.IPPROTO_IPV6 and kind == IPV6_PKTINFO:
        host, index = IN6_PKTINFO.unpack(data[: IN6_PKTINFO.size])
        link_local = host[0] == 0xFE and host[1] & 0xC0 == 0x80
        return Local(level, kind, host, index if link_local else 0)
    return None
