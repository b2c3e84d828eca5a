"""The frames of one lane that have left and are not acknowledged. Pure.

They are kept by the batch that left together, with its offsets in the lane: most batches are acknowledged as a whole,
which costs nothing for each frame. Only where an acknowledgement or a deadline cuts through a batch, it is taken apart.
"""

from collections import deque
from collections.abc import Iterator
from math import inf

from overlay.protocol.driver.wire import frame_head

Entry = tuple[bytes, float, bool]
"""A frame that is owed, its deadline, and whether it is reliable."""


class UnderWay:
    """What has left, in the order of the lane.

    Attributes:
        frames: how many frames that are.
        size: how many bytes they have, without their lengths.
    """

    def __init__(self) -> None:
        self.frames = 0
        self.size = 0
        self._batches: deque[_Batch] = deque()

    def __iter__(self) -> Iterator[Entry]:
        """All frames, the oldest first."""
        for batch in self._batches:
            yield from batch.entries

    @property
    def earliest(self) -> float:
        """No deadline is before it; infinite when nothing is under way."""
        return min((batch.earliest for batch in self._batches), default=inf)

    def add(self, start: int, entries: list[Entry]) -> int:
        """These frames leave; how many bytes they have, without their lengths.

        Args:
            start: where the first one begins in the lane, with its length; not below the end of those before.
            entries: at least one. The list must not change any more.
        """
        batch = _Batch(start, entries)
        self._batches.append(batch)
        self.frames += len(entries)
        self.size += batch.size
        return batch.size

    def acknowledge(self, offset: int) -> int:
        """The neighbour has the lane up to `offset`: frames that end there are forgotten; how many bytes they had."""
        batches = self._batches
        before = self.size
        while batches and batches[0].end <= offset:
            batch = batches.popleft()
            self.frames -= len(batch.entries)
            self.size -= batch.size
        if batches and batches[0].start < offset:
            frames, size = batches[0].acknowledge(offset)
            self.frames -= frames
            self.size -= size
        return before - self.size

    def expire(self, now: float) -> list[Entry]:
        """Forget the frames whose deadline is over; which those are, in their order."""
        late: list[Entry] = []
        if self.earliest > now:
            return late
        batches, self._batches = self._batches, deque()
        for batch in batches:
            for one in batch.split() if batch.earliest <= now else (batch,):
                if one.earliest > now:
                    self._batches.append(one)
                else:
                    late += one.entries
                    self.frames -= 1
                    self.size -= one.size
        return late


class _Batch:
    """Frames that follow each other in a lane without a gap."""

    __slots__ = ("earliest", "end", "entries", "size", "start")

    def __init__(self, start: int, entries: list[Entry]) -> None:
        sizes = [len(entry[0]) for entry in entries]
        self.start = start
        self.size = sum(sizes)
        self.end = start + self.size + sum([len(frame_head(size)) for size in sizes])
        self.entries = entries
        self.earliest = min([entry[1] for entry in entries])

    def acknowledge(self, offset: int) -> tuple[int, int]:
        """Forget the frames that end at `offset` or before; how many they were, and their bytes."""
        count = size = 0
        for one in self.split():
            if one.end > offset:
                break
            self.start = one.end
            count += 1
            size += one.size
        del self.entries[:count]
        self.size -= size
        return count, size

    def split(self) -> "Iterator[_Batch]":
        """A batch for each frame."""
        start = self.start
        for entry in self.entries:
            one = _Batch(start, [entry])
            yield one
            start = one.end
