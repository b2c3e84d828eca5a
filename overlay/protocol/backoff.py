"""When to try again: exponential backoff with full jitter, and a bucket that all dials of an endpoint share. Pure."""

from collections import deque
from collections.abc import Callable
from typing import Final


class Backoff:
    """Delays drawn between nothing and a bound that doubles, so that peers do not march in step.

    A draw may be next to nothing. In a row of failures that does no harm, as the bound grows; whoever resets after a
    success that may not last needs a least time between two tries of its own (`PeerTable`'s `first`).

    Args:
        first: the first bound, in seconds.
        cap: the highest.
        random: draws from [0, 1).
    """

    def __init__(self, first: float, cap: float, random: Callable[[], float]) -> None:
        self._first = first
        self._cap = cap
        self._random = random
        self._bound = first

    def next_delay(self) -> float:
        """The delay before the next try."""
        bound = self._bound
        self._bound = min(2 * bound, self._cap)
        return bound * self._random()

    def reset(self) -> None:
        """After a success, or when the world has changed."""
        self._bound = self._first


class DialBucket:
    """So many dials per second for the whole endpoint, so that our own outage does not become a storm."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._at = 0.0

    def take(self, now: float) -> float:
        """Take one dial; how many seconds to wait before it."""
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        self._level -= 1
        return max(0.0, -self._level / self._rate)


class OutageWatch:
    """Tells our own network's failure from a peer's: a quarter of all sessions suspect within a second."""

    WINDOW: Final = 1.0
    MINIMUM: Final = 4
    """Fewer suspects than this say nothing."""

    def __init__(self) -> None:
        self._suspects: deque[float] = deque()

    def suspected(self, now: float, sessions: int) -> bool:
        """A session became suspect; whether that makes it an outage of ours."""
        suspects = self._suspects
        suspects.append(now)
        while suspects[0] < now - self.WINDOW:
            suspects.popleft()
        return len(suspects) >= self.MINIMUM and 4 * len(suspects) >= sessions
