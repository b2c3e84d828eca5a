"""One direction of one hop of the simulated network: its rate, queue, delay, and every way to lose a datagram."""

import math
from collections import deque
from collections.abc import Callable, Sized
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

MAX_DATAGRAM = 65_507


class Clock(Protocol):
    """What a link needs of the network."""

    now: float
    random: Random

    def at(self, when: float, callback: Callable[..., None], *arguments: Any) -> None:
        """Call something at a time."""


@dataclass
class Gilbert:
    """Losses in bursts after Gilbert: a good state without loss and a bad one (per packet, not per time)."""

    enter: float
    """Probability, per packet, that the good state ends; 1 / `enter` is the good state's mean length in packets."""
    leave: float
    """The same for the bad state."""
    loss: float = 1.0
    """Probability that a packet is lost in the bad state."""
    bad: bool = False

    def loses(self, random: Random) -> bool:
        """Whether the next packet is lost."""
        if random.random() < (self.leave if self.bad else self.enter):
            self.bad = not self.bad
        return self.bad and random.random() < self.loss


@dataclass
class Counters:
    """What happened on a link, in datagrams where nothing else is said."""

    entered: int = 0
    delivered: int = 0
    delivered_bytes: int = 0
    too_long: int = 0
    overflowed: int = 0
    """Dropped because the queue was full."""
    lost: int = 0
    """Lost on the wire, by `loss`, `gilbert` or a blackout."""
    duplicated: int = 0
    held: int = 0
    """Reordered."""
    highest_queue: int = 0
    """Bytes."""


@dataclass(eq=False, slots=True)
class Held:
    """A datagram that waits until others have overtaken it."""

    behind: int
    """How many still have to pass."""
    datagram: Sized
    deliver: Callable[[Sized], None]


@dataclass(eq=False)
class Link:
    """One direction of one hop. Every parameter may be changed while it runs (`Network.change`)."""

    rate: float = math.inf
    """Bytes per second."""
    delay: float = 0.0
    """Seconds, one way."""
    queue: float = math.inf
    """Bytes that may wait, the datagram on its way out included; one datagram always fits."""
    loss: float = 0.0
    gilbert: Gilbert | None = None
    reorder: float = 0.0
    """Probability that a datagram is held back until some later ones have passed it."""
    reorder_depth: int = 50
    """By how many at most; how many is drawn evenly."""
    reorder_time: float = 0.1
    """And no longer than this, in seconds, or the last datagram would never come."""
    duplicate: float = 0.0
    mtu: int = MAX_DATAGRAM
    """The longest datagram that passes, in bytes of UDP payload."""
    up: bool = True
    """False during a blackout."""
    counters: Counters = field(default_factory=Counters)
    queued: int = 0
    """Bytes that wait now."""
    _waiting: deque[tuple[Sized, Callable[[Sized], None]]] = field(default_factory=deque)
    _held: list[Held] = field(default_factory=list)

    def send(self, network: Clock, datagram: Sized, deliver: Callable[[Sized], None]) -> None:
        """Put a datagram in; `deliver` is called with it when, and if, it comes out, perhaps twice."""
        counters = self.counters
        counters.entered += 1
        size = len(datagram)
        if size > self.mtu:
            counters.too_long += 1
        elif not self.up:
            counters.lost += 1
        elif self.rate == math.inf and not self._waiting:
            self._wire(network, datagram, deliver)
        elif self.queued and self.queued + size > self.queue:
            counters.overflowed += 1
        else:
            self.queued += size
            counters.highest_queue = max(counters.highest_queue, self.queued)
            self._waiting.append((datagram, deliver))
            if len(self._waiting) == 1:
                network.at(network.now + size / self.rate, self._depart, network)

    def _depart(self, network: Clock) -> None:
        datagram, deliver = self._waiting.popleft()
        self.queued -= len(datagram)
        if self._waiting:
            network.at(network.now + len(self._waiting[0][0]) / self.rate, self._depart, network)
        self._wire(network, datagram, deliver)

    def _wire(self, network: Clock, datagram: Sized, deliver: Callable[[Sized], None]) -> None:
        """What can happen to a datagram once it has left the queue."""
        random = network.random
        if (
            not self.up
            or (self.loss and random.random() < self.loss)
            or (self.gilbert is not None and self.gilbert.loses(random))
        ):
            self.counters.lost += 1
            return
        for held in self._held:
            held.behind -= 1
        overtaken = [held for held in self._held if held.behind <= 0]
        if self.reorder and random.random() < self.reorder:
            self.counters.held += 1
            late = Held(random.randint(1, self.reorder_depth), datagram, deliver)
            self._held.append(late)
            network.at(network.now + self.reorder_time, self._release, network, late)
        else:
            self._arrive(network, datagram, deliver)
            if self.duplicate and random.random() < self.duplicate:
                self.counters.duplicated += 1
                self._arrive(network, datagram, deliver)
        for held in overtaken:
            self._release(network, held)

    def _release(self, network: Clock, held: Held) -> None:
        if held in self._held:
            self._held.remove(held)
            self._arrive(network, held.datagram, held.deliver)

    def _arrive(self, network: Clock, datagram: Sized, deliver: Callable[[Sized], None]) -> None:
        self.counters.delivered += 1
        self.counters.delivered_bytes += len(datagram)
        network.at(network.now + self.delay, deliver, datagram)
