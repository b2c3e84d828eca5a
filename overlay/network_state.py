"""In which network this machine is: its addresses, and those of them from which packets to the internet leave.

What is of no consequence for a peer is left out, or the watch would cry wolf:

- Loopback addresses. It is the address that counts, not the interface: routers keep their own on `lo`.
- Addresses of interfaces that are down, or have no carrier.
- IPv6 addresses that are temporary (RFC 8981: a new one every day), deprecated (RFC 4862 section 5.5.4), or not known
  to be unique yet. Only Linux tells these; elsewhere they count, and their comings and goings cost a look too many.

None of this holds for the default sources: if packets to the internet leave from a temporary address, and from another
one tomorrow, then that is a change, because peers see us move.
"""

import errno
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Final, Self

import psutil

_FAR: Final = {
    4: (socket.AF_INET, ("198.41.0.4", 9)),
    6: (socket.AF_INET6, ("2001:503:ba3e::2:30", 9)),
}
"""A place on the internet, to which no packet is sent: the root server A, which does not move. Not an address for
documentation (RFC 5737): routers are told to drop those."""
_PREFIX: Final = {4: 24, 6: 64}
_ADDRESSES: Final = Path("/proc/net/if_inet6")
"""Linux only; a line has the address, the numbers of interface, prefix, scope and flags, and the interface's name."""
_PASSING: Final = 0x01 | 0x08 | 0x20 | 0x40
"""IFA_F_TEMPORARY, IFA_F_DADFAILED, IFA_F_DEPRECATED and IFA_F_TENTATIVE of linux/if_addr.h."""
_NO_ROOM: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


@dataclass(frozen=True, slots=True)
class NetworkChange:
    """What is different since the last look."""

    gained: frozenset[str]
    """Addresses of this machine that are new, written as `Address.host` is: `192.0.2.5`, `fe80::1%eth0`. That only
    link-local ones came may be a container that was started: who can be reached by them alone needs to hear of it."""
    lost: frozenset[str]
    """Those that are gone."""
    default: Mapping[int, str | None]
    """By family, 4 and 6: the address from which packets to the internet leave now; None without a route."""
    slept: float = 0.0
    """Seconds for which the machine was suspended; 0.0 if it was not."""


@dataclass(frozen=True, slots=True)
class NetworkState:
    """What was there at one look."""

    addresses: frozenset[str] = frozenset()
    default: tuple[str | None, str | None] = (None, None)
    """For IPv4 and IPv6."""

    @classmethod
    def look(cls, interfaces: tuple[str, ...] = (), fwmark: int | None = None) -> Self:
        """Ask the system; with ten interfaces it takes a quarter of a millisecond, and no packet is sent.

        Args:
            interfaces: only these count; empty: all.
            fwmark: SO_MARK of the sockets whose packets are asked about (Linux): routing rules may depend on it.

        Raises:
            OSError: no descriptor or memory is left, or the system refuses: nothing is known.
        """
        hosts = frozenset(_hosts(interfaces))
        return cls(hosts, (_default_source(4, interfaces, fwmark), _default_source(6, interfaces, fwmark)))

    def change_since(self, before: "NetworkState", slept: float) -> NetworkChange | None:
        """What has become of an earlier state; None if all is the same and the machine has not slept."""
        if self == before and not slept:
            return None
        default = dict(zip((4, 6), self.default, strict=True))
        return NetworkChange(self.addresses - before.addresses, before.addresses - self.addresses, default, slept)

    @property
    def fingerprint(self) -> str:
        """A name of the network, the same whenever we are in it: `192.0.2.0/24 2001:db8::/64`; empty without a route.

        Two homes may have the same one: it is a hint as to what may work, and proves nothing.
        """
        networks = [
            ip_network((source.partition("%")[0], _PREFIX[family]), strict=False)
            for family, source in zip((4, 6), self.default, strict=True)
            if source is not None
        ]
        return " ".join(map(str, networks))


def _hosts(interfaces: tuple[str, ...]) -> Iterator[str]:
    states = psutil.net_if_stats()
    passing = _passing()
    for label, entries in psutil.net_if_addrs().items():
        # An IPv4 address of eth0 may come under a label of its own, such as eth0:1 (netdevice(7)).
        name = label if label in states else label.partition(":")[0]
        # Not in `states`: it is younger than them, and there is a message on its way.
        if (interfaces and name not in interfaces) or name not in states or not states[name].isup:
            continue
        for entry in entries:
            if entry.family not in {socket.AF_INET, socket.AF_INET6}:
                continue
            host = ip_address(entry.address)
            if not host.is_loopback and (str(host), name) not in passing:
                yield str(host)


def _passing() -> frozenset[tuple[str, str]]:
    """IPv6 addresses, each with its interface, that are not worth a word."""
    try:
        lines = _ADDRESSES.read_text("utf-8").splitlines()
    except OSError:
        # Another system than Linux, one without IPv6, or one that does not let us look: then all count.
        return frozenset()
    found = set()
    for line in lines:
        digits, _, _, _, flags, name = line.split()
        if int(flags, 16) & _PASSING:
            host = IPv6Address(int(digits, 16))
            found.add((f"{host}%{name}" if host.is_link_local else str(host), name))
    return frozenset(found)


def _default_source(family: int, interfaces: tuple[str, ...], fwmark: int | None) -> str | None:
    """Connect a datagram socket, which asks for a route and sends nothing, and look where it begins."""
    kind, far = _FAR[family]
    for interface in interfaces or (None,):
        try:
            with socket.socket(kind, socket.SOCK_DGRAM) as sock:
                if fwmark is not None:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, fwmark)
                if interface is not None:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
                sock.connect(far)
                return str(ip_address(sock.getsockname()[0]))
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise
            # All else means that no packet would leave from here: no route, a route that refuses, no such interface.
            continue
    return None
