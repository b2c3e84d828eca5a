"""Which packet numbers have arrived: for acknowledgements, and so that no packet counts twice.

Numbers are kept as ranges. Nearly all packets arrive in order and extend the top range, which therefore lives in two
attributes of its own. At most MAXIMUM_RANGES are kept; when another gap opens, the lowest range is given up, and
everything up to its end counts as received from then on. A straggler from below is dropped unacknowledged, and its
sender sends its content again under a new number: costly, and rare enough. So nothing is ever accepted twice, in
bounded memory.

An ACK does not name every range, or one side of a lossy link would repeat all 64 for ever, 256 bytes each time. It
names the ranges that changed since the last ACK, and what the ACKS_REPEATED - 1 ACKs before it named for that reason,
as those may have been lost on the way.
"""

from bisect import bisect_left, bisect_right
from collections import deque
from typing import Final

MAXIMUM_RANGES: Final = 64
ACKS_REPEATED: Final = 16
"""How many ACKs name a change. Where 30 % of them are lost, all are in 4 cases of a thousand million; what nobody is
told of is sent again, no more."""


class ReceivedNumbers:
    """A set of packet numbers that forgets its gaps from below.

    Attributes:
        largest: the largest number received, -1 before the first.
        floor: everything below counts as received.
    """

    __slots__ = ("_changed", "_changes", "_highs", "_low", "_lows", "floor", "largest")

    def __init__(self) -> None:
        self.largest = -1
        self.floor = 0
        self._low = 0
        """Where the top range begins."""
        self._lows: list[int] = []
        self._highs: list[int] = []
        """The ranges below the top one, upwards."""
        self._changed = 0
        """The lowest number that arrived since the last ACK, or more than any that did."""
        self._changes: deque[int] = deque(maxlen=ACKS_REPEATED)

    def __len__(self) -> int:
        """How many ranges there are."""
        return len(self._lows) + (self.largest >= 0)

    def add(self, number: int) -> bool:
        """Take a number in; False when it was there, or may have been."""
        if number == self.largest + 1:
            self.largest = number
            return True
        if number > self.largest:
            if self.largest >= 0:
                self._lows.append(self._low)
                self._highs.append(self.largest)
            self._low = self.largest = number
            self._bound()
            return True
        if number >= self._low or number < self.floor:
            return False
        return self._insert(number)

    def __contains__(self, number: int) -> bool:
        if number < self.floor or self._low <= number <= self.largest:
            return True
        index = bisect_right(self._lows, number) - 1
        return index >= 0 and number <= self._highs[index]

    def ranges(self) -> list[tuple[int, int]]:
        """All that is kept: (lowest, highest) of each range, from the largest downwards."""
        if self.largest < 0:
            return []
        return [(self._low, self.largest), *zip(reversed(self._lows), reversed(self._highs), strict=True)]

    def take_ranges(self) -> list[tuple[int, int]]:
        """What the next ACK is to name: (lowest, highest) of each range, from the largest downwards."""
        self._changes.append(self._changed)
        self._changed = self.largest + 1
        if not self._lows:
            return [(self._low, self.largest)] if self.largest >= 0 else []
        since = bisect_left(self._highs, min(self._changes))
        ranges = [*zip(self._lows[since:], self._highs[since:], strict=True), (self._low, self.largest)]
        ranges.reverse()
        return ranges

    def _insert(self, number: int) -> bool:
        """Take in a number between `floor` and the top range."""
        lows, highs = self._lows, self._highs
        index = bisect_right(lows, number)
        if index and number <= highs[index - 1]:
            return False
        self._changed = min(self._changed, number)
        joins_below = index > 0 and highs[index - 1] == number - 1
        above = self._low if index == len(lows) else lows[index]
        if above != number + 1:
            if joins_below:
                highs[index - 1] = number
            else:
                lows.insert(index, number)
                highs.insert(index, number)
                self._bound()
            return True
        low = number
        if joins_below:
            index -= 1
            low = lows.pop(index)
            highs.pop(index)
        if index == len(lows):
            self._low = low
        else:
            lows[index] = low
        return True

    def _bound(self) -> None:
        if len(self._lows) >= MAXIMUM_RANGES:
            self.floor = self._highs.pop(0) + 1
            del self._lows[0]


def subtract(
    parts: list[tuple[int, int]], ranges: list[tuple[int, int]], index: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Take what an ACK names away from what is outstanding.

    Args:
        parts: (lowest, highest) of what is outstanding, upwards.
        ranges: of the ACK, downwards.
        index: of the lowest of `ranges` that can touch `parts`.

    Returns:
        What remains of `parts`, and what was taken, both upwards.
    """
    remaining: list[tuple[int, int]] = []
    taken: list[tuple[int, int]] = []
    for first, last in parts:
        position = first
        while index >= 0 and position <= last:
            low, high = ranges[index]
            if high < position:
                index -= 1
                continue
            if low > last:
                break
            if low > position:
                remaining.append((position, low - 1))
                position = low
            end = min(high, last)
            taken.append((position, end))
            position = end + 1
        if position <= last:
            remaining.append((position, last))
    return remaining, taken
