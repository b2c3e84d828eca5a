"""One deadline for each of many keys, the earliest first. Pure.

A heap is not searched when a deadline is dropped or replaced: what is outdated is recognised when it comes up, and the
heap is built anew when most of it is outdated. So it holds at most twice as many entries as there are deadlines, and
`STALE` more.
"""

from heapq import heapify, heappop, heappush
from typing import Final

STALE: Final = 64
"""So few outdated entries are never worth building the heap anew."""


class Deadlines:
    """When something is due, by key. Times in seconds."""

    def __init__(self) -> None:
        self._at: dict[bytes, float] = {}
        self._heap: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, key: bytes) -> bool:
        return key in self._at

    def get(self, key: bytes) -> float | None:
        """Its own; None without one."""
        return self._at.get(key)

    def set(self, key: bytes, at: float) -> None:
        """Put it to that time, in place of an earlier choice."""
        self._at[key] = at
        heappush(self._heap, (at, key))
        if len(self._heap) > 2 * len(self._at) + STALE:
            self._heap = [(at, key) for key, at in self._at.items()]
            heapify(self._heap)

    def drop(self, key: bytes) -> None:
        """There is none any more, if there was one."""
        self._at.pop(key, None)

    def pop(self, now: float) -> bytes | None:
        """Take out the earliest, if it is over at `now`."""
        at = self.next_timeout()
        if at is None or at > now:
            return None
        _, key = heappop(self._heap)
        del self._at[key]
        return key

    def next_timeout(self) -> float | None:
        """The earliest."""
        heap = self._heap
        while heap and self._at.get(heap[0][1]) != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else None
