"""What a bad line does to packets: delay, jitter, loss, reordering, duplication. Pure: no socket, no clock.

A `Direction` is one direction of a line. Packets go in by `push` and come out by `due`, each with the time at which it
happens; `next_due` says when to come back. The clock is the caller's, so a test can step it, and so is the randomness:
the same seed and the same packets make the same weather. The rate is not here: a queueing discipline of the kernel
(tbf) in front of the line does it better.
"""

import math
import random
from dataclasses import dataclass
from heapq import heappop, heappush

DEFAULT_QUEUE = 16 * 1024 * 1024
"""Bytes under way in one direction: what 1 Gbit/s, as much as a line in plain Python carries, sends in 130 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Impairment:
    """How one direction of a line treats packets. The default is a line that does nothing to them.

    Attributes:
        delay: seconds from one end to the other.
        jitter: seconds; each packet takes a further delay between 0 and this, evenly distributed. Order is kept: a
            packet waits for the one before it, so densely sent packets bunch up behind the slowest.
        loss: probability that a packet is lost, independent of all others.
        burst_start: probability, for each packet outside a burst, that a burst of losses begins with it.
        burst_length: packets in a burst, on average (geometrically distributed, as in Gilbert's model). In the long run
            bursts take `burst_start * burst_length / (burst_start * burst_length + 1 - burst_start)` of all packets.
        reorder: probability that a packet is held back, so that later ones overtake it.
        reorder_by: seconds for which it is held back.
        duplicate: probability that a packet comes twice.
        queue: bytes that may be under way at once; what comes on top is dropped.
    """

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    burst_start: float = 0.0
    burst_length: float = 1.0
    reorder: float = 0.0
    reorder_by: float = 0.01
    duplicate: float = 0.0
    queue: int = DEFAULT_QUEUE

    def __post_init__(self) -> None:
        for name in ("loss", "burst_start", "reorder", "duplicate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability between 0 and 1, not {getattr(self, name)}")
        for name in ("delay", "jitter", "reorder_by"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is a number of seconds, 0 or more, not {getattr(self, name)}")
        if not 1 <= self.burst_length < math.inf:
            raise ValueError(f"burst_length is a number of packets, 1 or more, not {self.burst_length}")
        if self.queue < 1:
            raise ValueError(f"queue is a number of bytes, 1 or more, not {self.queue}")


@dataclass(slots=True, kw_only=True)
class Counters:
    """What became of the packets of one direction.

    `seen + duplicated == lost + overflowed + under_way + delivered`, at any time.

    Attributes:
        seen: came in.
        lost: lost, one by one or in a burst.
        overflowed: dropped because the queue was full.
        duplicated: copies made.
        reordered: held back so that later ones could overtake.
        under_way: in the line now.
        delivered: came out.
        refused: of those delivered, how many the far end did not take because its interface was down.
    """

    seen: int = 0
    lost: int = 0
    overflowed: int = 0
    duplicated: int = 0
    reordered: int = 0
    under_way: int = 0
    delivered: int = 0
    refused: int = 0


class Direction:
    """The packets under way in one direction.

    Args:
        impairment: what happens to them.
        randomness: where chance comes from.
    """

    def __init__(self, impairment: Impairment, randomness: random.Random) -> None:
        self.counters = Counters()
        self._impairment = impairment
        self._random = randomness
        self._in_burst = False
        self._bytes = 0
        self._latest = -math.inf
        self._heap: list[tuple[float, int, bytes]] = []

    @property
    def next_due(self) -> float | None:
        """When to call `due` next; None while nothing is under way."""
        return self._heap[0][0] if self._heap else None

    def push(self, packet: bytes, now: float) -> None:
        """A packet came in. Call `due` at `next_due`."""
        impairment, counters = self._impairment, self.counters
        counters.seen += 1
        if self._is_lost():
            counters.lost += 1
            return
        self._send(packet, now)
        if self._happens(impairment.duplicate):
            counters.duplicated += 1
            self._send(packet, now)

    def due(self, now: float) -> list[bytes]:
        """The packets that come out until `now`, in the order of their arrival."""
        packets = []
        while self._heap and self._heap[0][0] <= now:
            packet = heappop(self._heap)[2]
            self._bytes -= len(packet)
            packets.append(packet)
        self.counters.under_way -= len(packets)
        self.counters.delivered += len(packets)
        return packets

    def impair(self, impairment: Impairment) -> None:
        """Treat packets differently from now on.

        Those under way arrive as they would have, and later ones do not overtake them, however short the new delay. A
        burst of losses ends.
        """
        self._impairment = impairment
        self._in_burst = False

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self._random.random() < probability

    def _is_lost(self) -> bool:
        impairment = self._impairment
        if self._in_burst or self._happens(impairment.burst_start):
            self._in_burst = not self._happens(1 / impairment.burst_length)
            return True
        return self._happens(impairment.loss)

    def _send(self, packet: bytes, now: float) -> None:
        impairment, counters = self._impairment, self.counters
        if self._bytes + len(packet) > impairment.queue:
            counters.overflowed += 1
            return
        when = now + impairment.delay
        if impairment.jitter:
            when += self._random.random() * impairment.jitter
        when = max(when, self._latest)
        if self._happens(impairment.reorder):
            # It does not move `_latest`: the packets behind must be free to overtake it.
            counters.reordered += 1
            when += impairment.reorder_by
        else:
            self._latest = when
        self._bytes += len(packet)
        counters.under_way += 1
        # The second field, a running number, keeps the packets of one instant in order.
        heappush(self._heap, (when, counters.under_way + counters.delivered, packet))
