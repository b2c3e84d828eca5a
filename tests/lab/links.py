"""Links: two interfaces with a wire between them, their addresses, and what the wire does to packets."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Literal

from lab.impairment import Impairment
from lab.kernel import LabError, run
from lab.line import Line

if TYPE_CHECKING:
    from lab.nodes import Host

Subnet = IPv4Network | IPv6Network
Direction = Literal["up", "down"]

METRIC = 100
"""Of a default route, if none is given: lower wins."""

QUEUE = "100ms"
"""So long a packet may wait for its turn on a link with a rate; what would wait longer is dropped."""

CHANCES = 100_000
"""Loss is counted in hundred-thousandths."""

LEAST_IPV6_MTU = 1280
"""RFC 8200, section 5; the kernel takes IPv6 off an interface with less."""

LAST_HOST = 254


class Link:
    """A wire between two hosts. `up` is from the lower one to the upper one, which is the lower one's gateway.

    Attributes:
        lower, upper: the hosts at its ends.
        mtu: bytes, of an IP packet.
        metric: of the routes through it, the lower one's default route above all.
        subnets: by family; the first address is the upper one's.
        announced: what lies behind the lower end, for the upper one's routes.
        line: the user-space line, if it is one.
        is_up: false between `down` and `up`.
    """

    def __init__(
        self,
        lower: "Host",
        upper: "Host",
        subnets: dict[int, Subnet],
        *,
        mtu: int,
        metric: int,
        impairment: Impairment | tuple[Impairment, Impairment] | None,
        seed: int,
    ) -> None:
        if 6 in subnets and mtu < LEAST_IPV6_MTU:
            raise LabError(f"an MTU of {mtu} is too small for IPv6: use Network(families=(4,)) or at least 1280")
        self.lower = lower
        self.upper = upper
        self.mtu = mtu
        self.metric = metric
        self.is_up = True
        self.subnets = subnets
        self.announced: list[Subnet] = []
        self._interfaces = {lower: f"eth{len(lower.links)}", upper: f"eth{len(upper.links)}"}
        self._hosts = dict.fromkeys(subnets, 2)
        self._loss = (0.0, 0.0)
        self._passes: set[Direction] = {"up", "down"}
        self._fragments = True
        self.line: Line | None = None
        if impairment is not None:
            ends = [(host.namespace, interface) for host, interface in self._interfaces.items()]
            self.line = Line(ends[0], ends[1], mtu=mtu, impairment=impairment, seed=seed)

    def build(self) -> None:
        """Make both interfaces, and give them their addresses."""
        if self.line is not None:
            self.line.start()
            for host, interface in self._interfaces.items():
                host.ip(f"link set {interface} address {self._hardware(host)}")
        else:
            lower, upper = self._interfaces.values()
            # One segment per packet: else TCP hands packets of 64 KB to the wire, and one loss is worth forty.
            options = f"mtu {self.mtu} gso_max_segs 1"
            peer = f"peer name {upper} {options} netns {self.upper.namespace}"
            self.lower.ip(f"link add {lower} {options} type veth {peer}")
        self.configure()

    def interface(self, host: "Host") -> str:
        """The name of the interface at this end."""
        return self._interfaces[host]

    def address(self, host: "Host", family: int) -> str:
        """The address at this end.

        Args:
            host: which end.
            family: 4 or 6.
        """
        if family not in self.subnets:
            raise LabError(f"{host.name} has no IPv{family} address: make it a Network(families=(..., {family}))")
        return str(self._address(host, family))

    def down(self) -> None:
        """Pull the plug: both ends lose their addresses and routes on this link, and packets under way are lost."""
        self.is_up = False
        for host, interface in self._interfaces.items():
            host.ip(f"link set {interface} down")

    def up(self) -> None:
        """Undo `down`, with the same addresses."""
        self.is_up = True
        self.configure()

    def set_rate(self, rate: float | tuple[float, float] | None) -> None:
        """Limit how fast packets leave.

        Args:
            rate: bits per second for each direction, or (up, down); None: as fast as the machine can.
        """
        rates = rate if isinstance(rate, tuple) else (rate, rate)
        for (host, interface), bits in zip(self._interfaces.items(), rates, strict=True):
            at = ["dev", interface, "root"]
            if bits is None:
                # It fails if there was no rate, which is as good.
                run(["tc", "qdisc", "delete", *at], namespace=host.namespace, check=False)
            else:
                # Four packets, and at high rates what passes in two milliseconds: timers may be that late.
                burst = int(max(4 * (self.mtu + 14), bits / 8 * 0.002))
                limit = ["tbf", "rate", f"{int(bits)}bit", "burst", str(burst), "latency", QUEUE]
                run(["tc", "qdisc", "replace", *at, *limit], namespace=host.namespace)

    def set_loss(self, loss: float | tuple[float, float]) -> None:
        """Lose packets at random, each by itself: a probability for both directions, or (up, down)."""
        self._loss = loss if isinstance(loss, tuple) else (loss, loss)
        self._filter()

    def one_way(self, direction: Direction) -> None:
        """Let packets pass in this direction only: "up" or "down"."""
        self._passes = {direction}
        self._filter()

    def both_ways(self) -> None:
        """Undo `one_way`."""
        self._passes = {"up", "down"}
        self._filter()

    def block_fragments(self) -> None:
        """Drop IP fragments, as many firewalls do; else the kernel hides a small MTU from UDP by fragmenting."""
        self._fragments = False
        self._filter()

    def impair(self, impairment: Impairment | tuple[Impairment, Impairment]) -> None:
        """Change what the user-space line does to packets, live: in both directions, or (up, down)."""
        if self.line is None:
            raise LabError("this link is a plain one: make it with net.link(..., impairment=Impairment()) to change it")
        self.line.impair(impairment)

    def readdress(self, family: int | None = None) -> str:
        """Give the lower end a new address and take the old one away, as an access network does.

        Args:
            family: 4 or 6; by default the network's first one.

        Returns:
            The new address.
        """
        if not self.is_up:
            raise LabError("this link is down: call up() before readdress()")
        family = family or next(iter(self.subnets))
        old = self._with_prefix(self.lower, family)
        self._hosts[family] += 1
        if self._hosts[family] > LAST_HOST:
            raise LabError(f"this link has had all its {LAST_HOST} addresses: make a new network")
        self.configure()
        self.lower.ip(f"addr del {old} dev {self._interfaces[self.lower]}")
        # A route may go with the address that it would have used.
        self.configure()
        return self.address(self.lower, family)

    def announce(self, subnets: Iterable[Subnet]) -> None:
        """Tell the upper end that these subnets lie behind the lower one."""
        self.announced += subnets
        self.configure()

    def configure(self) -> None:
        """Bring both ends up with their addresses and routes; repeating it changes nothing."""
        if not self.is_up:
            return
        lower, upper = self._interfaces[self.lower], self._interfaces[self.upper]
        self.upper.ip(
            f"link set {upper} up",
            *(
                f"addr replace {self._with_prefix(self.upper, family)} dev {upper} {_EXTRA[family]}"
                for family in self.subnets
            ),
            *(
                f"route replace {net} via {self._address(self.lower, net.version)} dev {upper} metric {self.metric}"
                for net in self.announced
            ),
        )
        self.lower.ip(
            f"link set {lower} up",
            *(
                f"addr replace {self._with_prefix(self.lower, family)} dev {lower} {_EXTRA[family]}"
                for family in self.subnets
            ),
            *(
                f"route replace default via {self._address(self.upper, family)} dev {lower} metric {self.metric}"
                for family in self.subnets
            ),
        )
        if self.line is not None:
            # A line over a satellite does not ask for neighbours first, and so lose a round trip.
            for here, there in ((self.lower, self.upper), (self.upper, self.lower)):
                known = f"lladdr {self._hardware(there)} dev {self._interfaces[here]} nud permanent"
                here.ip(*(f"neigh replace {self._address(there, family)} {known}" for family in self.subnets))

    def close(self) -> None:
        """End the user-space line, if it is one; the interfaces vanish with their namespaces."""
        if self.line is not None:
            self.line.close()

    def _filter(self) -> None:
        directions: tuple[tuple[Host, Direction, float], ...] = (
            (self.upper, "up", self._loss[0]),
            (self.lower, "down", self._loss[1]),
        )
        for receiver, direction, loss in directions:
            blocked = direction not in self._passes
            receiver.nft(wire(self._interfaces[receiver], 1.0 if blocked else loss, fragments=self._fragments))

    def _address(self, host: "Host", family: int) -> IPv4Address | IPv6Address:
        return self.subnets[family][1 if host is self.upper else self._hosts[family]]

    def _hardware(self, host: "Host") -> str:
        """The hardware address of a user-space line's end."""
        return f"02:00:00:00:00:0{1 if host is self.lower else 2}"

    def _with_prefix(self, host: "Host", family: int) -> str:
        return f"{self._address(host, family)}/{self.subnets[family].prefixlen}"


_EXTRA = {4: "", 6: "nodad"}
"""Duplicate address detection would keep an IPv6 address unusable for a second."""


def wire(interface: str, loss: float, *, fragments: bool) -> str:
    """The nft script that makes an interface lose what comes to it.

    It is the receiver that loses, since a sender hears of what is dropped on its own side: TCP slows down, and UDP
    sockets may raise. Neighbour discovery is spared: without it a one-way link would be dead both ways.

    Args:
        interface: its name.
        loss: the probability for each packet.
        fragments: whether fragments pass.
    """
    table = f"netdev overlay_wire_{interface}"
    rules = [] if fragments else ["ip frag-off & 0x3fff != 0 drop", "exthdr frag exists drop"]
    lost = round(loss * CHANCES)
    # nft refuses a comparison that is always true.
    rules.append("drop" if lost >= CHANCES else f"numgen random mod {CHANCES} < {lost} drop")
    body = "\n".join(f"    {rule}" for rule in rules)
    return f"""table {table}
delete table {table}
table {table} {{
  chain arriving {{
    type filter hook ingress device "{interface}" priority 0; policy accept;
    meta protocol arp accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
{body}
  }}
}}
"""
