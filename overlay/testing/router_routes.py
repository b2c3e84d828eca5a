"""Who is reached over whom: distance vectors with sequence numbers, which cannot form loops. Pure.

Every node tells its neighbours how far it is from each destination, and each takes the neighbour that is nearest. Told
like this, two nodes that have both lost a destination would go on to believe each other, and count to infinity. So each
destination numbers what is said of it: it alone counts the number up, with each of its periodic announcements, and all
others hand the number on. A node remembers the best that it has ever *said* of a destination, the newest number and
with it the lowest metric, and uses only neighbours that are strictly better than that: a newer number, or the same
number and fewer links. What each node has ever said then gets strictly better along the next hops towards the
destination, whatever is late, so they never form a circle: this is the feasibility condition of Babel (RFC 8966
section 2.4, after EIGRP's DUAL), with the numbers of DSDV (Perkins and Bhagwat, 1994).

Its price: a node may know a neighbour with a longer way and must not use it until the destination has announced itself
anew. That takes one period at most; what is sent meanwhile waits in the router's store.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from overlay.identity import PeerId
from overlay.testing.router_wire import MAX_HOPS, WITHDRAWN, Garbage, Route

ROUTE_PERIODS: Final = 3.5
"""Periods without a newer number after which a route is taken for lost: three announcements have not come."""
MEMORY_PERIODS: Final = 60
"""Periods for which a lost destination is remembered: what was said of it must have aged away everywhere."""
MAX_DESTINATIONS: Final = 1024
"""A stranger can announce as many keys as he likes."""


@dataclass(slots=True)
class _Way:
    """What one neighbour says of one destination."""

    sequence: int
    metric: int
    """Links from us."""
    renewed: float
    """When this number came: to repeat an old one keeps nothing alive."""


@dataclass(slots=True)
class _Destination:
    ways: dict[PeerId, _Way] = field(default_factory=dict)
    next_hop: PeerId | None = None
    said: tuple[int, int] | None = None
    """Sequence and metric: the best that we have ever said."""
    told: tuple[int, int] | None = None
    """The same: what we have said last; None: nothing, or that there is no way."""
    lost: float = 0.0
    """When its last way went."""

    @property
    def current(self) -> tuple[int, int] | None:
        """Sequence and metric of the way that is taken."""
        if self.next_hop is None:
            return None
        way = self.ways[self.next_hop]
        return way.sequence, way.metric

    def allows(self, way: _Way) -> bool:
        """The feasibility condition: the neighbour, one link nearer than we over it, is better than what we said."""
        if self.said is None:
            return True
        sequence, metric = self.said
        return way.sequence > sequence or (way.sequence == sequence and way.metric - 1 < metric)


class RoutingTable:
    """What one node knows of the others.

    Args:
        ours: our own key.
        period: seconds between two announcements of any node.
        sequence: the number of our first announcement; higher than any before a restart.

    Attributes:
        neighbours: those with a link.
        gained: somebody can be reached who could not, or over another neighbour; the reader sets it back.
        refused: routes for which there was no room.
    """

    def __init__(self, ours: PeerId, *, period: float, sequence: int) -> None:
        self.neighbours: set[PeerId] = set()
        self.gained = False
        self.refused = 0
        self._ours = ours
        self._period = period
        self._sequence = sequence
        self._destinations: dict[PeerId, _Destination] = {}
        self._changed: dict[PeerId, None] = {}

    @property
    def changed(self) -> bool:
        """Whether the neighbours do not know all yet."""
        return bool(self._changed)

    def next_hop(self, destination: PeerId) -> PeerId | None:
        """The neighbour that is nearest to it; None without a route."""
        known = self._destinations.get(destination)
        return None if known is None else known.next_hop

    def routes(self) -> dict[PeerId, tuple[PeerId, int]]:
        """All who can be reached: over which neighbour, and how many links away."""
        return {
            key: (known.next_hop, known.ways[known.next_hop].metric)
            for key, known in self._destinations.items()
            if known.next_hop is not None
        }

    def renew(self) -> None:
        """Announce ourselves with a new number."""
        self._sequence += 1
        self._changed[self._ours] = None

    def neighbour_up(self, neighbour: PeerId) -> None:
        """There is a link. Our new number lets all who have lost us know the way over it."""
        self.neighbours.add(neighbour)
        self.renew()

    def neighbour_down(self, neighbour: PeerId, now: float) -> None:
        """There is no link any more."""
        self.neighbours.discard(neighbour)
        for key, known in self._destinations.items():
            if known.ways.pop(neighbour, None) is not None:
                self._choose(key, known, now)
        self.renew()

    def heard(self, routes: Iterable[Route], neighbour: PeerId, now: float) -> None:
        """A neighbour has told us routes.

        Raises:
            Garbage: it says that it is 0 links from somebody else, or more from itself. Nothing has changed.
        """
        routes = tuple(routes)
        if any((route.metric == 0) != (route.destination == neighbour) for route in routes):
            raise Garbage("nobody but the neighbour itself is 0 links from it")
        if neighbour not in self.neighbours:
            # It came before, or after, the link itself: what counts is said again within a period.
            return
        for route in routes:
            if route.destination == self._ours:
                if route.sequence > self._sequence:
                    # We have forgotten how far we were: our clock went back between two starts.
                    self._sequence = route.sequence
                    self.renew()
            else:
                self._hear(route, neighbour, now)

    def expire(self, now: float) -> None:
        """Forget what has not been renewed for too long."""
        for key, known in tuple(self._destinations.items()):
            silent = now - ROUTE_PERIODS * self._period
            late = [neighbour for neighbour, way in known.ways.items() if way.renewed < silent]
            for neighbour in late:
                del known.ways[neighbour]
            if late:
                self._choose(key, known, now)
            if not known.ways and known.lost < now - MEMORY_PERIODS * self._period and key not in self._changed:
                del self._destinations[key]

    def take_changes(self) -> list[Route]:
        """What all neighbours are to be told now; it counts as said."""
        routes = [route for key in self._changed if (route := self._say(key)) is not None]
        self._changed.clear()
        return routes

    def everything(self) -> list[Route]:
        """What a new neighbour is to be told; it counts as said."""
        reached = [key for key, known in self._destinations.items() if known.next_hop is not None]
        return [route for key in (self._ours, *reached) if (route := self._say(key)) is not None]

    def _hear(self, route: Route, neighbour: PeerId, now: float) -> None:
        key, sequence, metric = route
        gone = metric >= MAX_HOPS
        known = self._destinations.get(key)
        if known is None:
            if gone:
                return
            if len(self._destinations) >= MAX_DESTINATIONS:
                self.refused += 1
                return
            known = self._destinations[key] = _Destination()
        way = known.ways.get(neighbour)
        if way is not None and sequence < way.sequence:
            # It has been overtaken.
            return
        if gone:
            known.ways.pop(neighbour, None)
        elif way is None or sequence > way.sequence:
            known.ways[neighbour] = _Way(sequence, metric + 1, now)
        else:
            way.metric = metric + 1
        self._choose(key, known, now)

    def _choose(self, key: PeerId, known: _Destination, now: float) -> None:
        """Take the best way that is allowed; the newest of those that are equally long."""
        before = known.next_hop
        allowed = [(way.metric, -way.sequence, peer) for peer, way in known.ways.items() if known.allows(way)]
        known.next_hop = min(allowed)[2] if allowed else None
        if known.next_hop not in {None, before}:
            self.gained = True
        if not known.ways:
            known.lost = now
        if known.current != known.told:
            self._changed[key] = None

    def _say(self, key: PeerId) -> Route | None:
        if key == self._ours:
            return Route(key, self._sequence, 0)
        known = self._destinations[key]
        known.told = known.current
        if known.told is None:
            # Who was never told of a way needs not be told that there is none.
            return None if known.said is None else Route(key, known.said[0], WITHDRAWN)
        sequence, metric = known.told
        if known.said is None or (sequence, -metric) > (known.said[0], -known.said[1]):
            known.said = known.told
        return Route(key, sequence, metric)
