"""Which of our own addresses others can use."""

import socket
from collections.abc import Iterable
from ipaddress import ip_address

import psutil

from overlay.addresses import MAX_TICKET_ADDRESSES, Address

_FAMILIES = {socket.AF_INET: 4, socket.AF_INET6: 6}


def reachable(listening: Iterable[Address], interfaces: tuple[str, ...] = ()) -> list[Address]:
    """Wildcards replaced by the addresses of this machine's interfaces; loopback only if nothing else is left.

    Link-local addresses are left out: they mean nothing without the name that the reader's own interface has.

    Args:
        listening: where sockets are bound.
        interfaces: use only these; empty: all.
    """
    found: dict[Address, None] = {}
    for address in listening:
        if address.is_literal and ip_address(address.host.partition("%")[0]).is_unspecified:
            for host in _hosts(address.family, interfaces):
                found[Address(address.transport, host, address.port)] = None
        else:
            found[address] = None
    outside = [address for address in found if not _is_loopback(address)]
    return (outside or list(found))[:MAX_TICKET_ADDRESSES]


def _hosts(family: int | None, interfaces: tuple[str, ...]) -> Iterable[str]:
    for name, entries in psutil.net_if_addrs().items():
        if interfaces and name not in interfaces:
            continue
        for entry in entries:
            if _FAMILIES.get(entry.family) == family and "%" not in entry.address:
                yield entry.address


def _is_loopback(address: Address) -> bool:
    return address.is_literal and ip_address(address.host.partition("%")[0]).is_loopback
