"""Kinds of address translation (RFC 4787), and the nft script that each becomes.

The kernel's `masquerade` keeps one outside port per inside socket, and lets in who was written to: a port-restricted
cone. The other kinds are made from it. The cones that let in more remember in a map which inside socket an outside
port belongs to, and forward to it whatever comes; that holds for UDP, TCP stays port-restricted in every kind.
IPv6 is not translated.
"""

from enum import Enum

TABLE = "ip overlay_nat"
LIFE = 120
"""Seconds without a packet after which a cone forgets a socket: what RFC 4787 (REQ-5) asks for at least."""


class Nat(Enum):
    """What a router does with the addresses of those behind it. Mapping first, then filtering (RFC 4787, 4.1 and 5)."""

    FULL_CONE = "endpoint-independent mapping, endpoint-independent filtering"
    ADDRESS_RESTRICTED = "endpoint-independent mapping, address-dependent filtering"
    PORT_RESTRICTED = "endpoint-independent mapping, address- and port-dependent filtering; keeps the port if it can"
    PORT_RESTRICTED_REMAPPED = "the same, with another port, from 20000 to 29999"
    SYMMETRIC = "address- and port-dependent mapping, address- and port-dependent filtering"


SOURCE = {
    Nat.FULL_CONE: "masquerade",
    Nat.ADDRESS_RESTRICTED: "masquerade",
    Nat.PORT_RESTRICTED: "masquerade",
    Nat.PORT_RESTRICTED_REMAPPED: "meta l4proto { tcp, udp } masquerade to :20000-29999",
    Nat.SYMMETRIC: "masquerade fully-random",
}
"""How each kind changes the source of what goes out.

The kernel leaves a port alone that is in the range already, so the range is one from which sockets do not get theirs
(ip_local_port_range begins at 32768).
"""

KEYS = {
    Nat.FULL_CONE: ("inet_service", "ct reply proto-dst", "udp dport"),
    Nat.ADDRESS_RESTRICTED: ("ipv4_addr . inet_service", "ip daddr . ct reply proto-dst", "ip saddr . udp dport"),
}
"""By what a cone finds the socket behind an outside port: the key's type, the key going out, the key coming in."""


INSIDE = "ct original ip saddr . ct original proto-src"


def script(kind: Nat, outside: list[str]) -> str:
    """The nft script that makes a router translate, in the place of whatever was there.

    Args:
        kind: how.
        outside: the names of the interfaces that lead outside; all others are inside. May be empty.
    """
    replaced = f"table {TABLE}\ndelete table {TABLE}\n"
    if not outside:
        return replaced
    wan = "{ " + ", ".join(f'"{name}"' for name in outside) + " }"
    return f"""{replaced}table {TABLE} {{
{_cone(kind, wan) if kind in KEYS else ""}
  chain translate {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname {wan} {SOURCE[kind]}
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    ct status dnat accept
    iifname {wan} ct state new,invalid drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname {wan} meta l4proto {{ tcp, udp }} ct state new drop
  }}
}}
"""


def _cone(kind: Nat, wan: str) -> str:
    key, going_out, coming_in = KEYS[kind]
    # `learn` comes after `translate` (priority srcnat is 100): only then the reply's port is the one outside.
    return f"""  map sockets {{
    type {key} : ipv4_addr . inet_service
    flags dynamic,timeout
    timeout {LIFE}s
    size 65535
  }}
  chain learn {{
    type filter hook postrouting priority 110; policy accept;
    iifname != {wan} oifname {wan} meta l4proto udp update @sockets {{ {going_out} : {INSIDE} }}
  }}
  chain lead_in {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname {wan} dnat ip to {coming_in} map @sockets
  }}
"""
