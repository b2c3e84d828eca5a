"""Where a peer may be: `Address`, and `Ticket`, the string that people paste.

    address = [ transport "://" ] ( name / IPv4 / "[" IPv6 [ "%" zone ] "]" ) ":" port
    ticket  = "overlay:" peer-id "@" address *( "," address )

There is one object and one string for one place, so that sets and tables need no rules of their own: lower
case, compressed IPv6 (RFC 5952), IPv4 instead of IPv4-mapped IPv6, names as A-labels (IDNA 2008, after the
mapping of UTS 46) without the last dot. What other programs read in two ways is refused instead of guessed:
`127.1`, octal parts, ports with zeros in front, zone ids elsewhere than on link-local addresses.
"""

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, total_ordering
from typing import Any, Self

import idna

from overlay.errors import AddressError
from overlay.identity import PEER_ID_CHARACTERS, PeerId

SCHEMES = ("quic", "tcp", "udp", "memory")
"""Transports that an address can name."""

MAX_TICKET_ADDRESSES = 64
"""A host with more addresses than that has some that nobody needs; a dialler has to try them all."""

_PREFIX = "overlay:"
_MAX_NAME_CHARACTERS = 253  # RFC 1035 section 2.3.4: 255 octets on the wire
_LONGEST_ADDRESS = len("memory://") + _MAX_NAME_CHARACTERS + len(":65535")

MAX_TICKET_CHARACTERS = (
    len(_PREFIX) + PEER_ID_CHARACTERS + len("@") + MAX_TICKET_ADDRESSES * (_LONGEST_ADDRESS + len(","))
)
"""Enough for any ticket that this module prints; longer strings are refused unread."""

# A name may be longer before IDNA composes its characters; the work of `idna` grows with the length's square.
_MAX_ADDRESS_CHARACTERS = 2 * _LONGEST_ADDRESS
_MAX_SHOWN_CHARACTERS = 80

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1123 section 2.1
# "Ends in a number" of the WHATWG URL standard: inet_aton would read an odd form of an IPv4 address.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
# Names of network interfaces: Linux allows 15 bytes of anything but "/" and white space (dev_valid_name);
# what separates parts of our own strings is left out.
_ZONE = re.compile(r"[!-~]{1,15}")
_NOT_IN_ZONE = frozenset("%/,@[]?#\\")

# Transports make an address of each peer's socket address: this spares the common ones the parsing.
_HOST_CACHE_ENTRIES = 1024


@total_ordering
@dataclass(frozen=True, slots=True)
class Address:
    """A place where a peer may be, in canonical form.

    Ordered by transport, family (IPv4, IPv6, names), host and port: an order without a meaning, for
    reproducible lists.

    Args:
        transport: one of `SCHEMES`; None stands for all transports of that port.
        host: an IP literal without brackets, `fe80::1%eth0` included, or a name. The attribute holds the
            canonical form.
        port: 1 to 65535.

    Raises:
        AddressError: a part that cannot be; `part` is that part.
    """

    transport: str | None
    host: str
    port: int

    def __post_init__(self) -> None:
        """Bring it into canonical form."""
        if self.transport is not None and self.transport not in SCHEMES:
            raise AddressError(self.transport, self.transport, _unknown_transport())
        if not 1 <= self.port <= 65535:
            raise AddressError(str(self.port), str(self.port), "a port is a number from 1 to 65535")
        object.__setattr__(self, "host", _canonical_host(self.host))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address such as `quic://[2001:db8::1]:9330`, `198.51.100.7:9330` or `host.example:9330`.

        Raises:
            AddressError: names the part at fault.
        """
        if len(text) > _MAX_ADDRESS_CHARACTERS:
            raise _too_long(text, f"longer than any address ({len(text)} characters)")
        scheme, separator, rest = text.partition("://")
        if not separator:
            scheme, rest = "", text
        elif scheme.lower() not in SCHEMES:
            raise AddressError(text, scheme, _unknown_transport())
        _refuse_url_parts(text, rest)
        host, port = _split(text, rest)
        try:
            return cls(scheme.lower() if separator else None, host, port)
        except AddressError as error:
            raise AddressError(text, error.part, error.why) from error

    @classmethod
    def from_sockaddr(cls, transport: str | None, sockaddr: tuple[Any, ...]) -> Self:
        """Make one of a socket address as the `socket` module gives it.

        IPv4-mapped addresses become IPv4; a link-local one gets its zone from the scope id: the interface's
        name, or its number when it is gone already.

        Args:
            transport: as in the constructor.
            sockaddr: `(host, port)` of AF_INET or `(host, port, flow info, scope id)` of AF_INET6.

        Raises:
            AddressError: port 0, which a forged datagram may carry, or no IP address.
        """
        host, port = sockaddr[0].partition("%")[0], sockaddr[1]
        scope = sockaddr[3] if len(sockaddr) > 3 else 0
        if scope and _is_link_local(host):
            try:
                host += f"%{socket.if_indextoname(scope)}"
            except OSError:
                host += f"%{scope}"
        return cls(transport, host, port)

    def sockaddr(self) -> tuple[str, int] | tuple[str, int, int, int]:
        """Return what the `socket` module wants for a literal.

        Returns:
            `(host, port)` for IPv4, `(host, port, 0, scope id)` for IPv6.

        Raises:
            AddressError: the host is a name.
            OSError: there is no interface of the zone's name.
        """
        if self.family is None:
            raise AddressError(str(self), self.host, "a name has to be resolved first")
        if self.family == 4:
            return self.host, self.port
        host, _, zone = self.host.partition("%")
        if not zone:
            return host, self.port, 0, 0
        return host, self.port, 0, int(zone) if zone.isdigit() else socket.if_nametoindex(zone)

    def with_transport(self, name: str | None) -> Self:
        """Return the same place for another transport.

        Raises:
            AddressError: no transport has that name.
        """
        return type(self)(name, self.host, self.port)

    @property
    def family(self) -> int | None:
        """4, 6, or None for a name."""
        if ":" in self.host:
            return 6
        # No name ends in a number, so only digits and dots make an IPv4 address.
        return 4 if self.host.replace(".", "").isdigit() else None

    @property
    def is_literal(self) -> bool:
        """Whether the host is an IP address."""
        return self.family is not None

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Address):
            return NotImplemented
        return self._order() < other._order()

    def __str__(self) -> str:
        """The string that `parse` reads back."""
        host = f"[{self.host}]" if self.family == 6 else self.host
        scheme = f"{self.transport}://" if self.transport else ""
        return f"{scheme}{host}:{self.port}"

    def _order(self) -> tuple[str, int, bytes, str, int]:
        host, _, zone = self.host.partition("%")
        family = self.family
        packed = host.encode() if family is None else ipaddress.ip_address(host).packed
        return self.transport or "", family or 9, packed, zone, self.port


@dataclass(frozen=True, slots=True)
class Ticket:
    """Whom to dial, and where: `overlay:PEERID@198.51.100.7:9330,[2001:db8::7]:9330`.

    Args:
        peer_id: the key that must answer.
        addresses: where it may be, in the order of its owner's preference; repeated ones are left out. At
            least one, at most `MAX_TICKET_ADDRESSES`.

    Raises:
        AddressError: none or too many addresses.
    """

    peer_id: PeerId
    addresses: tuple[Address, ...]

    def __init__(self, peer_id: PeerId, addresses: Iterable[Address]) -> None:
        unique = tuple(dict.fromkeys(addresses))
        if not unique:
            raise AddressError("", "", "a ticket has at least one address")
        if len(unique) > MAX_TICKET_ADDRESSES:
            why = f"a ticket has at most {MAX_TICKET_ADDRESSES} addresses, not {len(unique)}"
            surplus = str(unique[MAX_TICKET_ADDRESSES])
            raise AddressError(surplus, surplus, why)
        object.__setattr__(self, "peer_id", peer_id)
        object.__setattr__(self, "addresses", unique)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a ticket; white space at both ends is ignored, because people paste.

        Raises:
            AddressError: names the part at fault.
        """
        if len(text) > MAX_TICKET_CHARACTERS:
            raise _too_long(text, f"longer than any ticket ({len(text)} characters)")
        text = text.strip()
        # Cut, not split at the first colon: an address without a ticket around it has colons too.
        head, body = text[: len(_PREFIX)], text[len(_PREFIX) :]
        if head.lower() != _PREFIX:
            raise AddressError(text, head, f"a ticket starts with {_PREFIX!r}")
        peer, separator, places = body.partition("@")
        if not separator:
            raise AddressError(text, body, "'@' and an address are missing behind the peer id")
        parts = places.split(",", MAX_TICKET_ADDRESSES)
        if len(parts) > MAX_TICKET_ADDRESSES:
            why = f"a ticket has at most {MAX_TICKET_ADDRESSES} addresses"
            raise AddressError(text, _shortened(parts[-1]), why)
        try:
            return cls(PeerId.parse(peer), map(Address.parse, parts))
        except AddressError as error:
            raise AddressError(text, error.part, error.why) from error

    def __str__(self) -> str:
        """The string that `parse` reads back."""
        return f"{_PREFIX}{self.peer_id}@{','.join(map(str, self.addresses))}"


def parse_target(text: str) -> Ticket | PeerId:
    """Read whom somebody means: a ticket, or the bare key of a peer of which the addresses are known.

    Raises:
        AddressError: it is neither; names the part at fault.
    """
    return Ticket.parse(text) if ":" in text else PeerId.parse(text)


def _unknown_transport() -> str:
    return "unknown transport; known are " + ", ".join(SCHEMES)


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else text[:_MAX_SHOWN_CHARACTERS] + "…"


def _too_long(text: str, why: str) -> AddressError:
    """Keep and print only the start: an error is logged."""
    return AddressError(_shortened(text), _shortened(text), why)


def _refuse_url_parts(text: str, rest: str) -> None:
    """Refuse what a URL may have around its host and port."""
    user, separator, _ = rest.partition("@")
    if separator:
        raise AddressError(text, user + "@", "an address has no user")
    for position, character in enumerate(rest):
        if character in "/?#\\":
            raise AddressError(text, rest[position:], "nothing may follow the port: no path, no query")


def _split(text: str, rest: str) -> tuple[str, int]:
    """Take host and port apart; the host is checked by the constructor.

    Raises:
        AddressError: brackets or port are wrong.
    """
    if rest.startswith("["):
        host, separator, tail = rest[1:].partition("]")
        if not separator:
            raise AddressError(text, rest, "the closing bracket is missing")
        if ":" not in host:
            raise AddressError(text, host, "only an IPv6 address stands in brackets")
        if tail and not tail.startswith(":"):
            raise AddressError(text, tail, "only ':' and a port may follow the bracket")
        has_port, port = bool(tail), tail[1:]
    else:
        if rest.count(":") > 1:
            raise AddressError(text, rest, "an IPv6 address must stand in brackets, as in [2001:db8::1]:9330")
        host, separator, port = rest.partition(":")
        has_port = bool(separator)
    if not host:
        raise AddressError(text, rest, "the host is missing")
    if not has_port or not port:
        raise AddressError(text, rest, "the port is missing")
    # Not int() alone: it reads "+1", "1_0", " 1 " and the digits of all scripts.
    if not (port.isascii() and port.isdigit()) or port.startswith("0") or len(port) > 5 or int(port) > 65535:
        raise AddressError(text, port, "a port is a number from 1 to 65535, in ASCII digits without zeros in front")
    return host, int(port)


@lru_cache(maxsize=_HOST_CACHE_ENTRIES)
def _canonical_host(host: str) -> str:
    if len(host) > _MAX_ADDRESS_CHARACTERS:
        raise _too_long(host, f"longer than any host ({len(host)} characters)")
    if not host:
        raise AddressError(host, host, "the host is missing")
    if ":" in host:
        return _canonical_ipv6(host)
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        return _canonical_name(host)


def _canonical_ipv6(host: str) -> str:
    literal, separator, zone = host.partition("%")
    try:
        address = ipaddress.IPv6Address(literal)
    except ValueError as error:
        raise AddressError(host, literal, "no IPv6 address") from error
    if not separator:
        return str(address.ipv4_mapped or address)
    if not address.is_link_local:
        raise AddressError(host, "%" + zone, "only a link-local address (fe80::/10) has a zone")
    if not _ZONE.fullmatch(zone) or not _NOT_IN_ZONE.isdisjoint(zone):
        raise AddressError(host, "%" + zone, "a zone is the name or number of a network interface")
    if zone.isdigit() and (zone.startswith("0") or int(zone) >= 2**32):
        raise AddressError(host, "%" + zone, "an interface's number is 1 to 4294967295, without zeros in front")
    # Names of interfaces are case-sensitive: the zone stays as it is.
    return f"{address}%{zone}"


def _canonical_name(host: str) -> str:
    """Bring a name into its A-label form.

    Labels of letters, digits and hyphens pass as the DNS has them: IDNA would refuse some that exist, such as
    `r3---sn-x`. The others have to be valid under IDNA 2008.
    """
    try:
        name = host.lower() if host.isascii() else idna.uts46_remap(host, std3_rules=False)
    except ValueError as error:
        raise AddressError(host, host, f"no valid name: {error}") from error
    labels = name.removesuffix(".").split(".")
    if _NUMBER.fullmatch(labels[-1]):
        raise AddressError(host, host, "looks like a number; an IPv4 address has four decimal parts from 0 to 255")
    name = ".".join(_canonical_label(host, label) for label in labels)
    if len(name) > _MAX_NAME_CHARACTERS:
        raise AddressError(host, host, f"a name has at most {_MAX_NAME_CHARACTERS} characters, not {len(name)}")
    return name


def _canonical_label(host: str, label: str) -> str:
    if not label:
        raise AddressError(host, host, "a label between the dots of the name is missing")
    if not label.isascii() or label.startswith("xn--"):
        try:
            # Both ways: Punycode has several spellings for some labels, and only one of them is canonical.
            encoded = idna.alabel(idna.ulabel(label)).decode()
        except ValueError as error:
            raise AddressError(host, label, f"not a valid label of a name: {error}") from error
        if label.isascii() and encoded != label:
            raise AddressError(host, label, f"not the canonical form of {encoded!r}")
        label = encoded
    if not _LABEL.fullmatch(label):
        why = "a label of a name has 1 to 63 letters, digits and hyphens, with no hyphen at its ends"
        raise AddressError(host, label, why)
    return label


def _is_link_local(host: str) -> bool:
    try:
        return ":" in host and ipaddress.IPv6Address(host).is_link_local
    except ValueError as error:
        raise AddressError(host, host, "no IPv6 address") from error
