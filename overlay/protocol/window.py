"""How large a stream's receive window has to be: enough for the rate at which it is read, and no more. Pure.

What the sender may send and nobody has read yet stands somewhere: in the sender's connection, on the path, in the
receiver's socket. Where the receiver is the slowest part, all of it stands there all the time, and what is urgent waits
behind it, as a connection keeps its order. So a window is no larger than what is read within some round trips, which is
measured, as TCP's receivers do (Fisk and Feng, "Dynamic Right-Sizing in TCP", 2001). A reader that waits for its window
reads one in each round trip: so the window grows several times in each, until something else is the limit, the path,
the sender or the reader itself, and stays then.

The round trip is the least that the connection knows of its path; or, where that is longer, the least time from
granting credit to the first byte that needed it: with TCP the kernel answers, however slow the loops are to come round.
"""

import math
from collections.abc import Callable
from typing import Final

from overlay.protocol.liveness import Progress

HEADROOM: Final = 4
"""So many times what is read in a round trip: twice, as credit is granted by halves, and twice again, so that what a
path can carry is found out soon."""
GROWTH: Final = 4
"""Factor by which a window grows at most, each time that a whole one was read."""
TURN: Final = 0.000375
"""Seconds: a shorter round trip counts as this long. Both event loops have to come round. Measured with TCP on
loopback: 0.00025 costs one stream a seventh of its rate; with 0.0005 what is urgent waits for longer."""
INTERVAL: Final = 0.01
"""Seconds for which is measured at least: a reader that was kept from running finds a whole window waiting, and reads
it at a rate that means nothing."""
FREE: Final = 96 * 1024
"""Bytes up to which a window grows without being measured: one piece of a stream, and another half under way."""
ROUND: Final = 128 * 1024
"""Bytes: windows are multiples of two pieces of a stream, as credit that ends within a piece makes two of it."""
UNLIMITED: Final = 2**62


class Reading:
    """How fast one stream is read, and how long its credit takes."""

    __slots__ = ("_granted_at", "_granted_from", "_since", "_start")

    def __init__(self) -> None:
        self._start = 0
        self._since = -math.inf
        self._granted_from: int | None = None
        """The limit before the credit whose way is being timed."""
        self._granted_at = 0.0

    def granted(self, limit: int, now: float) -> None:
        """More credit leaves: beyond `limit` the sender could not send before."""
        if self._granted_from is None:
            self._granted_from, self._granted_at = limit, now

    def used(self, end: int, now: float) -> float:
        """Bytes up to `end` have come; the seconds that credit for them took, infinite when that was not timed."""
        if self._granted_from is None or end <= self._granted_from:
            return math.inf
        self._granted_from = None
        return now - self._granted_at

    def within(self, round_trip: float, consumed: int, now: float) -> int:
        """Bytes that were read in a round trip, since this was asked last; 0 while that is too short ago.

        Args:
            round_trip: seconds.
            consumed: bytes that were read so far.
            now: the clock.
        """
        elapsed = now - self._since
        if elapsed < max(round_trip, INTERVAL):
            return 0
        read = (consumed - self._start) / elapsed * round_trip
        self._start, self._since = consumed, now
        return int(read)


class Sizing:
    """How large the windows of a session's streams may become.

    Attributes:
        enough: bytes beyond which no window has to grow: what the quickest reader so far has needed, as the next
            stream is on the same path.
    """

    def __init__(self) -> None:
        self.enough = FREE
        self._credit = math.inf
        """The least time in which credit has brought bytes."""
        self._path: float | None = None
        self._asked_at = -math.inf

    def received(
        self, reading: Reading, end: int, consumed: int, now: float, watch: Callable[[], Progress] | None
    ) -> None:
        """Bytes of a stream have come.

        Args:
            reading: the stream's.
            end: the offset behind them.
            consumed: bytes of the stream that were read so far.
            now: the clock.
            watch: tells what the connection that brought them knows of its path; None: nothing, so there is no limit.
        """
        self._credit = min(self._credit, reading.used(end, now))
        if now >= self._asked_at + INTERVAL:
            self._asked_at = now
            self._path = None if watch is None else watch().rtt_min
        if self._path is None:
            self.enough = UNLIMITED
        elif self._credit < math.inf:
            round_trip = max(self._path, self._credit, TURN)
            wanted = HEADROOM * reading.within(round_trip, consumed, now)
            self.enough = max(self.enough, -(-wanted // ROUND) * ROUND)
