"""Who is dialled next when nobody waits for it, and when: two queues before one bucket. Pure.

Those whom somebody keeps come before all others, so that strangers whose sessions linger cannot hold them up. Within a
queue the order is that of coming, so that nobody starves when more is due than the bucket lets through.
"""

from collections import OrderedDict

from overlay.protocol.backoff import DialBucket


class DialTurns:
    """Keys that wait for their dial.

    Args:
        rate: dials per second.
        burst: so many may go at once.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._bucket = DialBucket(rate, burst)
        self._chosen: OrderedDict[bytes, None] = OrderedDict()
        self._others: OrderedDict[bytes, None] = OrderedDict()
        self._turn: float | None = None
        """When the next may go: taken from the bucket in advance, for whoever is first then."""

    def __len__(self) -> int:
        return len(self._chosen) + len(self._others)

    def __contains__(self, key: bytes) -> bool:
        return key in self._chosen or key in self._others

    def add(self, key: bytes, *, chosen: bool) -> None:
        """Let it wait, at the end of its queue; who waits already keeps its place, or moves ahead as `chosen`."""
        if chosen:
            self._others.pop(key, None)
            self._chosen[key] = None
        elif key not in self._chosen:
            self._others[key] = None

    def drop(self, key: bytes) -> None:
        """It no longer waits."""
        self._chosen.pop(key, None)
        self._others.pop(key, None)

    @property
    def first(self) -> bytes | None:
        """Who is next."""
        return next(iter(self._chosen or self._others), None)

    def take(self, now: float) -> bytes | None:
        """Take out the first, if its turn has come."""
        queue = self._chosen or self._others
        if not queue:
            return None
        if self._turn is None:
            self._turn = now + self._bucket.take(now)
        if self._turn > now:
            return None
        self._turn = None
        return queue.popitem(last=False)[0]

    def next_timeout(self) -> float | None:
        """When to call `take` again, which has been called since the last `add`; None: nobody waits."""
        return self._turn if len(self) else None
