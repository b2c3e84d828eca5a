"""The place where all scenarios happen: two homes and the internet between them.

    a --near_a-- home_a --wan_a-- internet --wan_b-- home_b --near_b-- b

Every scenario is this site with something wrong with it, so two scenarios differ in what they are about and in nothing
else. With a carrier's own translation (CGNAT), `carrier` stands between `home_a` and the internet.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from lab.links import Link
from lab.nat import Nat
from lab.network import Network
from lab.nodes import Host, Router

Side = Literal["a", "b"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a site is made of.

    Attributes:
        families: of its addresses.
        nat: of the homes that translate, by side.
        carrier: how the carrier in front of `home_a` translates, if there is one.
        links: options of `Network.link` for links by their names.
    """

    families: tuple[int, ...] = (4,)
    nat: dict[Side, Nat] = field(default_factory=dict)
    carrier: Nat | None = None
    links: dict[str, dict[str, Any]] = field(default_factory=dict)


class Site:
    """A network after a plan.

    Attributes:
        hosts: `a` and `b`.
        homes: their routers.
        internet: what is between these.
        links: by the names in the drawing.
    """

    def __init__(self, network: Network, plan: Plan) -> None:
        self.network = network
        self.plan = plan
        self.internet = network.router("internet")
        self.carrier = None if plan.carrier is None else network.router("carrier", nat=plan.carrier)
        self.hosts: dict[Side, Host] = {}
        self.homes: dict[Side, Router] = {}
        self.links: dict[str, Link] = {}
        if self.carrier is not None:
            self._link("carrier", self.carrier, self.internet)
        for side in ("a", "b"):
            home = self.homes[side] = network.router(f"home-{side}", nat=plan.nat.get(side))
            host = self.hosts[side] = network.host(side)
            upper = self.carrier if side == "a" and self.carrier is not None else self.internet
            self._link(f"wan_{side}", home, upper)
            self._link(f"near_{side}", host, home)

    def outside_interface(self, side: Side) -> str:
        """The name of a home router's interface to the internet."""
        return self.links[f"wan_{side}"].interface(self.homes[side])

    def public_hosts(self, side: Side) -> list[str]:
        """The addresses under which the rest of the world may find a host, one for each family."""
        found = []
        for family in self.plan.families:
            translated = family == 4 and side in self.plan.nat
            outermost = self.carrier if translated and side == "a" and self.carrier is not None else self.homes[side]
            found.append((outermost if translated else self.hosts[side]).address(family))
        return found

    def _link(self, name: str, lower: Host, upper: Host) -> None:
        self.links[name] = self.network.link(lower, upper, **self.plan.links.get(name, {}))
