"""Networks: hosts and routers in a tree, with addresses and routes given automatically, torn down whatever happens."""

import itertools
import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from ipaddress import IPv4Network, IPv6Network
from types import TracebackType
from typing import Self

from lab import kernel
from lab.impairment import Impairment
from lab.kernel import LabError
from lab.leftovers import namespace_name, sweep
from lab.links import METRIC, Link, Subnet
from lab.nat import Nat
from lab.nodes import Host, Router
from lab.processes import Process
from lab.requirements import missing

_numbers = itertools.count()
"""Tells the networks of one process apart."""


class Network:
    """Hosts, routers and the links between them, each in a namespace of its own, none linked to the machine's own.

    `with Network() as network:` is the only way to use it: leaving the block ends the processes and deletes the
    namespaces. An error that leaves the block gets all processes' output as a note.

    Args:
        families: of which addresses are given: (4,), (6,) or (4, 6).
        seed: of what the user-space lines do at random.

    Attributes:
        hosts: all hosts and routers, by name.
        links: all links, in the order in which they were made.
    """

    def __init__(self, families: tuple[int, ...] = (4,), *, seed: int = 0) -> None:
        if not families or set(families) - {4, 6}:
            raise LabError(f"{families} are no address families: use (4,), (6,) or (4, 6)")
        self.families = families
        self.hosts: dict[str, Host] = {}
        self.links: list[Link] = []
        self._number = next(_numbers)
        self._seed = seed
        self._namespaces = ExitStack()
        self._public = IPv4Network("198.18.0.0/15").subnets(new_prefix=24)
        # Not 10.0.0.0/24, to be told from an address that nobody has set.
        self._private = (IPv4Network(f"10.{number}.0.0/24") for number in range(1, 256))
        self._carrier = IPv4Network("100.64.0.0/10").subnets(new_prefix=24)
        self._ipv6 = (IPv6Network(f"2001:db8:{number:x}::/64") for number in range(1, 65536))

    def __enter__(self) -> Self:
        if lines := missing():
            raise LabError("; ".join(lines))
        sweep()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        processes = [process for host in self.hosts.values() for process in host.processes]
        # Last in, first out: every step is taken even if those before it failed.
        with self._namespaces, ExitStack() as steps:
            if error is not None:
                steps.callback(_add_reports, error, processes)
            for process in processes:
                steps.callback(process.close)
            steps.callback(kernel.end_processes_inside, [host.namespace for host in self.hosts.values()])
            for link in self.links:
                steps.callback(link.close)
            for process in processes:
                steps.callback(process.stop)
            # All are asked at once, and then waited for.
            for process in processes:
                process.send_signal(signal.SIGTERM)

    def host(self, name: str) -> Host:
        """Make a host; the name is of letters, digits and hyphens."""
        host = Host(name, self._namespace(name))
        self.hosts[name] = host
        return host

    def router(self, name: str, *, nat: Nat | None = None) -> Router:
        """Make a router, with NAT for those who are linked below it if a kind is given."""
        router = Router(name, self._namespace(name), nat)
        self.hosts[name] = router
        return router

    def link(
        self,
        lower: Host,
        upper: Host,
        *,
        rate: float | tuple[float, float] | None = None,
        mtu: int = 1500,
        metric: int = METRIC,
        impairment: Impairment | tuple[Impairment, Impairment] | None = None,
    ) -> Link:
        """Link two hosts; the upper one becomes the lower one's gateway, and learns what is behind the lower one.

        Args:
            lower: the end that gets a default route.
            upper: the end nearer to the internet.
            rate: bits per second in each direction, or (up, down); None: as fast as the machine can.
            mtu: bytes, of an IP packet, at both ends.
            metric: of the default route: with several uplinks, the lowest wins.
            impairment: of both directions, or (up, down). With any, even an empty one, the link is a user-space line.
        """
        if lower is upper or lower in _above(upper):
            raise LabError(f"a link from {lower.name} up to {upper.name} would close a circle: links make a tree")
        seed = self._seed + len(self.links)
        link = Link(lower, upper, self._subnets(lower, upper), mtu=mtu, metric=metric, impairment=impairment, seed=seed)
        # Before it exists: what a failure leaves of it is closed with the network.
        self.links.append(link)
        link.build()
        lower.uplinks.append(link)
        upper.downlinks.append(link)
        if rate is not None:
            link.set_rate(rate)
        if isinstance(lower, Router):
            lower.translate()
        _announce(link, lower.subnets_below())
        return link

    def _namespace(self, name: str) -> str:
        if not re.fullmatch(r"[a-z0-9-]{1,32}", name):
            raise LabError(f"{name!r} cannot name a host: use up to 32 small letters, digits and hyphens")
        if name in self.hosts:
            raise LabError(f"this network has a host {name!r} already: choose another name")
        namespace = namespace_name(self._number, name)
        # Before it exists: it must go even if its making is interrupted.
        self._namespaces.callback(kernel.delete, namespace)
        return namespace

    def _subnets(self, lower: Host, upper: Host) -> dict[int, Subnet]:
        """A subnet of each family for a new link, from the range that fits its place."""
        ipv4 = self._public
        if any(isinstance(host, Router) and host.nat for host in (upper, *_above(upper))):
            ipv4 = self._carrier if isinstance(lower, Router) and lower.nat else self._private
        ranges: dict[int, Iterator[Subnet]] = {4: ipv4, 6: self._ipv6}
        try:
            return {family: next(ranges[family]) for family in self.families}
        except StopIteration as error:
            raise LabError("this network has used up its subnets: split it into several") from error


def _above(host: Host) -> Iterator[Host]:
    """All hosts that can be reached by going up."""
    for link in host.uplinks:
        yield link.upper
        yield from _above(link.upper)


def _add_reports(error: BaseException, processes: list[Process]) -> None:
    for process in processes:
        error.add_note(process.report())


def _announce(link: Link, subnets: Iterable[Subnet]) -> None:
    """Tell those above a link what is below it; a NAT keeps its IPv4 subnets to itself."""
    hidden = isinstance(link.lower, Router) and link.lower.nat is not None
    link.announce(subnet for subnet in subnets if not (hidden and subnet.version == 4))
    for uplink in link.upper.uplinks:
        _announce(uplink, [*link.subnets.values(), *link.announced])
