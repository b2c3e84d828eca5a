"""How many strangers may knock at once: a count of unauthenticated inbound handshakes.

A handshake costs a signature and a few kilobytes, and asks nothing of who begins it; so those under way are
counted, in total and for each origin, and whoever comes above a limit is turned away before any work is done
for him. One gate serves all transports of an endpoint: spreading an attack over them gains nothing.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address

_PREFIX_BITS = 64
"""A household or a server gets at least a /64 of IPv6 (RFC 6177 section 2): within it addresses cost
nothing."""


class HandshakeGate:
    """Counts handshakes that are under way: `enter` before one begins and, if let in, `leave` at its end.

    Args:
        total: how many at once, from everywhere.
        per_address: how many at once from one IPv4 address or IPv6 /64.
    """

    def __init__(self, total: int, per_address: int) -> None:
        self._total = total
        self._per_address = per_address
        self._pending = 0
        self._by_origin: dict[str, int] = {}

    @property
    def pending(self) -> int:
        """How many are under way."""
        return self._pending

    def enter(self, host: str) -> bool:
        """Count one more from `host`, an address literal; False, uncounted, when a limit is reached."""
        origin = _origin(host)
        here = self._by_origin.get(origin, 0)
        if self._pending >= self._total or here >= self._per_address:
            return False
        self._pending += 1
        self._by_origin[origin] = here + 1
        return True

    def leave(self, host: str) -> None:
        """The handshake that `enter` let in for `host` has ended, well or badly.

        Raises:
            ValueError: none from there is under way.
        """
        origin = _origin(host)
        here = self._by_origin.get(origin, 0)
        if not here:
            raise ValueError(f"no handshake from {host} is under way")
        self._pending -= 1
        if here == 1:
            del self._by_origin[origin]
        else:
            self._by_origin[origin] = here - 1


def _origin(host: str) -> str:
    try:
        address: IPv4Address | IPv6Address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{int(address) >> (128 - _PREFIX_BITS):x}/{_PREFIX_BITS}"
