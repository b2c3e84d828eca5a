"""Firewalls as data: rule sets that a router applies to what it forwards, and the nft script that they become.

Every predefined rule only ever drops or rejects. So rule sets compose in any order: a packet passes when it passes
each of them. All are for IPv4 and IPv6 alike, and for both directions unless they name an interface.
"""

from dataclasses import dataclass
from typing import ClassVar

TABLE = "inet overlay_firewall"


@dataclass(frozen=True, slots=True)
class Firewall:
    """A rule set.

    Attributes:
        name: in capitals, as in reports.
        description: one sentence, what a user of such a network meets.
        forward: nft rules for what the router passes on.
        output: nft rules for what the router says itself, such as its ICMP errors.
    """

    name: str
    description: str
    forward: tuple[str, ...] = ()
    output: tuple[str, ...] = ()

    OPEN: ClassVar["Firewall"]
    UDP_BLOCKED: ClassVar["Firewall"]
    QUIC_RECOGNISED: ClassVar["Firewall"]
    LONG_HEADERS_BLOCKED: ClassVar["Firewall"]
    TCP_BLOCKED: ClassVar["Firewall"]
    TCP_RESET: ClassVar["Firewall"]
    ONLY_PORT_443: ClassVar["Firewall"]
    ONLY_TCP_443: ClassVar["Firewall"]
    IPV4_BLACK_HOLE: ClassVar["Firewall"]
    IPV6_BLACK_HOLE: ClassVar["Firewall"]
    PMTU_BLACK_HOLE: ClassVar["Firewall"]

    @classmethod
    def nothing_inbound(cls, interface: str) -> "Firewall":
        """A stateful firewall: through this interface come answers only.

        Args:
            interface: the router's interface to the outside, `link.interface(router)`.
        """
        return cls(
            "NOTHING_INBOUND",
            f"Whoever is outside of {interface} can answer but not begin.",
            forward=(f'iifname "{interface}" ct state new,invalid drop',),
        )

    @classmethod
    def one_way(cls, interface: str) -> "Firewall":
        """Nothing at all comes through this interface, answers neither."""
        return cls("ONE_WAY", f"What comes from {interface} vanishes.", forward=(f'iifname "{interface}" drop',))


def script(firewalls: tuple[Firewall, ...]) -> str:
    """The nft script that puts these rule sets, all of them, in the place of whatever was there, in one step."""
    forward = "\n".join(f"    {rule}" for firewall in firewalls for rule in firewall.forward)
    output = "\n".join(f"    {rule}" for firewall in firewalls for rule in firewall.output)
    # Deleting a table that is not there is an error; declaring it first makes it one that is there.
    return f"""table {TABLE}
delete table {TABLE}
table {TABLE} {{
  chain forward {{
    type filter hook forward priority filter; policy accept;
{forward}
  }}
  chain output {{
    type filter hook output priority filter; policy accept;
{output}
  }}
}}
"""


Firewall.OPEN = Firewall("OPEN", "Everything passes.")
Firewall.UDP_BLOCKED = Firewall("UDP_BLOCKED", "No UDP passes.", ("meta l4proto udp drop",))
Firewall.QUIC_RECOGNISED = Firewall(
    "QUIC_RECOGNISED",
    "QUIC is recognised by its long headers with version 1 or 2 (RFC 9000, section 17.2; RFC 9369); other UDP passes.",
    # In long headers the first two bits are 1 and the next four bytes are the version; UDP's own header is 64 bits.
    ("meta l4proto udp @th,64,2 3 @th,72,32 { 0x00000001, 0x6b3343cf } drop",),
)
Firewall.LONG_HEADERS_BLOCKED = Firewall(
    "LONG_HEADERS_BLOCKED",
    "What looks like a QUIC handshake of any version is dropped: datagrams of more than 5 bytes that begin with 11.",
    ("udp length > 13 @th,64,2 3 drop",),
)
Firewall.TCP_BLOCKED = Firewall("TCP_BLOCKED", "No TCP passes; connecting times out.", ("meta l4proto tcp drop",))
Firewall.TCP_RESET = Firewall(
    "TCP_RESET", "No TCP passes; connections are refused and reset.", ("meta l4proto tcp reject with tcp reset",)
)
Firewall.ONLY_PORT_443 = Firewall(
    "ONLY_PORT_443",
    "UDP and TCP pass to port 443, and their answers.",
    # The connection's first packet decides: a source port 443 opens nothing.
    ("meta l4proto { tcp, udp } ct original proto-dst != 443 drop",),
)
Firewall.ONLY_TCP_443 = Firewall(
    "ONLY_TCP_443",
    "TCP passes to port 443, and its answers; UDP does not.",
    (*Firewall.UDP_BLOCKED.forward, "meta l4proto tcp ct original proto-dst != 443 drop"),
)
Firewall.IPV4_BLACK_HOLE = Firewall(
    "IPV4_BLACK_HOLE", "IPv4 addresses and routes exist, and its packets vanish.", ("meta nfproto ipv4 drop",)
)
Firewall.IPV6_BLACK_HOLE = Firewall(
    "IPV6_BLACK_HOLE", "IPv6 addresses and routes exist, and its packets vanish.", ("meta nfproto ipv6 drop",)
)
Firewall.PMTU_BLACK_HOLE = Firewall(
    "PMTU_BLACK_HOLE",
    "Packets that are too big for the next link vanish, and nobody is told.",
    output=("icmp type destination-unreachable icmp code frag-needed drop", "icmpv6 type packet-too-big drop"),
)
