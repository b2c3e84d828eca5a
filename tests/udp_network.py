"""A network that exists on a stepped clock only: rates, queues, delays, every kind of loss, and changes under way.

How to use it. A `Node` is anything with the four methods of the pure core's machines. Two nodes are joined by two lists
of `Link`s, one for each direction; a list has several links where a path has several hops, and flows that name the same
`Link` object share it, its rate and its queue. Datagrams are opaque: all that counts is their `len()`.

    network = Network(seed=1)
    there = Link(rate=6.25e6, delay=0.05, queue=625_000, loss=0.01)
    back = Link(delay=0.05)
    network.connect(client, server, there, back)
    network.blackout(10.0, 30.0, there, back)
    network.change(60.0, there, mtu=500, rate=1e6)
    network.run(until=120.0, done=lambda: server.complete)

The way of a datagram through a link: it is dropped if it is longer than the MTU or the queue is full; it waits in the
queue and leaves at the link's rate; on the wire it may be lost, doubled, or held back until others have overtaken it;
after the delay it is at the other end. Losses strike behind the queue, as on radio: what is lost has used its share of
the rate.

All is deterministic: one seed gives one run, and events of one instant happen in the order in which they were made.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from random import Random
from typing import Any, Protocol

from udp_link import Counters, Gilbert, Link

__all__ = ["STUCK", "Attachment", "Counters", "Gilbert", "Link", "Network", "Node"]

STUCK = 1000
"""So many turns of one node within one instant: it asks to be called again and again and changes nothing."""


class Node(Protocol):
    """One end of a path. Its turn: take what has arrived, handle the timer if it is due, send all that may leave."""

    def receive(self, datagram: Any, now: float) -> None:
        """Take a datagram."""

    def handle_timeout(self, now: float) -> None:
        """The time that `next_timeout` named has come."""

    def datagrams_to_send(self, now: float) -> Iterable[Sized]:
        """All that may leave now; asked at the end of every turn."""

    def next_timeout(self) -> float | None:
        """When `handle_timeout` is to be called, in seconds; in the past means at once, None never."""


@dataclass(eq=False)
class Attachment:
    """A node's place in the network."""

    network: "Network"
    node: Node
    lag: float
    path: Sequence[Link] = ()
    peer: "Attachment | None" = None
    _inbox: list[Sized] = field(default_factory=list)
    _awake: bool = False
    _timer: float = math.inf
    _turns: int = 0
    _last_turn: float = -math.inf

    def wake(self) -> None:
        """Give the node a turn, `lag` seconds from now; what arrives until then is part of the same turn."""
        if not self._awake:
            self._awake = True
            self.network.at(self.network.now + self.lag, self._turn)

    def arrive(self, datagram: Sized) -> None:
        self._inbox.append(datagram)
        self.wake()

    def _turn(self) -> None:
        now = self.network.now
        self._awake = False
        self._turns = self._turns + 1 if now == self._last_turn else 0
        self._last_turn = now
        assert self._turns < STUCK, f"{self.node!r} is stuck at {now}"
        node = self.node
        inbox, self._inbox = self._inbox, []
        for datagram in inbox:
            node.receive(datagram, now)
        due = node.next_timeout()
        if due is not None and due <= now:
            node.handle_timeout(now)
        for datagram in node.datagrams_to_send(now):
            self._forward(0, datagram)
        self._arm()

    def _forward(self, hop: int, datagram: Sized) -> None:
        """Put a datagram into the path's next link, or hand it over behind the last one."""
        if hop < len(self.path):
            self.path[hop].send(self.network, datagram, partial(self._forward, hop + 1))
        elif self.peer is not None:
            self.peer.arrive(datagram)

    def _arm(self) -> None:
        """See to it that an event comes no later than the node's timer; earlier ones look and find nothing to do."""
        due = self.node.next_timeout()
        if due is not None and due < self._timer:
            self._timer = max(due, self.network.now)
            self.network.at(self._timer, self._ring, self._timer)

    def _ring(self, when: float) -> None:
        if when != self._timer:
            return
        self._timer = math.inf
        due = self.node.next_timeout()
        if due is not None and due <= self.network.now:
            self.wake()
        else:
            self._arm()


class Network:
    """The clock and everything that is still to happen.

    Attributes:
        now: seconds since the start.
        handled: how many events have happened.
        random: the only source of chance, for the nodes too.
    """

    def __init__(self, seed: int = 1) -> None:
        self.now = 0.0
        self.handled = 0
        self.random = Random(seed)
        self._order = count()
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def at(self, when: float, callback: Callable[..., None], *arguments: Any) -> None:
        """Call something at a time."""
        heapq.heappush(self._events, (when, next(self._order), callback, arguments))

    def change(self, when: float, link: Link, **values: Any) -> None:
        """Set parameters of a link at a time; the datagram that is just leaving still has the old rate."""

        def change() -> None:
            for name, value in values.items():
                assert hasattr(link, name), name
                setattr(link, name, value)

        self.at(when, change)

    def blackout(self, start: float, seconds: float, *links: Link) -> None:
        """Let nothing pass for a while; what is queued is lost as it leaves."""
        for link in links:
            self.change(start, link, up=False)
            self.change(start + seconds, link, up=True)

    def connect(
        self,
        left: Node,
        right: Node,
        there: Link | Sequence[Link],
        back: Link | Sequence[Link],
        *,
        lag: float = 0.0,
        start: float = 0.0,
    ) -> tuple[Attachment, Attachment]:
        """Join two nodes.

        Args:
            left: one end.
            right: the other end.
            there: the links from left to right.
            back: the links from right to left.
            lag: seconds from an arrival or a due timer to the node's turn, as in a busy event loop.
            start: when both get their first turn.

        Returns:
            Their places; a node that gets work from outside a turn needs `wake()` to be called on its place.
        """
        places = Attachment(self, left, lag), Attachment(self, right, lag)
        for place, peer, path in zip(places, reversed(places), (there, back), strict=True):
            place.peer = peer
            place.path = (path,) if isinstance(path, Link) else tuple(path)
            self.at(max(start, self.now), place.wake)
        return places

    def run(self, until: float, done: Callable[[], bool] | None = None) -> bool:
        """Let time pass.

        Args:
            until: the time at which to stop, in seconds.
            done: stops earlier, with the clock where it is, as soon as this is true.

        Returns:
            Whether `done` came true.
        """
        events = self._events
        while events and events[0][0] <= until:
            when, _, callback, arguments = heapq.heappop(events)
            self.now = max(self.now, when)
            self.handled += 1
            callback(*arguments)
            if done is not None and done():
                return True
        self.now = max(self.now, until)
        return False
