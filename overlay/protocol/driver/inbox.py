"""What has arrived from all neighbours and waits to be read: control before bulk, and each neighbour in its turn. Pure.

Each lane has a bound of its own: whoever fills it stops reading that lane's stream until `on_room` is called, so that
this neighbour waits, and nobody else. All lanes together have one as well, as keys cost nothing: when that is reached
all wait until half of it is read, and as lanes take turns, nobody for longer than the others. Items come in batches,
each of one read; a batch counts until its last item is taken, which costs nothing for each item, and errs on the safe
side.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from overlay.protocol.stream import Priority

LANE_SIZE: Final = 256 * 1024
"""Bytes with which a lane is full, if nothing else is said. One batch may pass it, so what waits is below this and the
longest batch."""
LANE_ITEMS: Final = 4096
"""Items with which a lane is full, however small they are."""
ITEM_COST: Final = 128
"""Bytes that each item counts in the inbox besides its own: what it costs as an object."""
CONTROL_RUN: Final = 8
INBOX_SIZE: Final = 64 * 1024 * 1024
"""Bytes with which the inbox is full: a hundred full lanes."""

T = TypeVar("T")


class Lane(Generic[T]):
    """What waits from one neighbour, of one priority. Made by `Inbox.lane`.

    Args:
        inbox: its own.
        limit: bytes with which it is full.
        ready: the lanes of this priority in which something waits; the first one is next.

    Attributes:
        on_room: called once when a full lane has become half empty, at the end of `Inbox.pop`. It must not raise.
        batches: of each its items in reverse, how many there were at first, and their size in bytes.
    """

    def __init__(self, inbox: "Inbox[T]", limit: int, ready: "deque[Lane[T]]") -> None:
        self._inbox = inbox
        self._limit = limit
        self.on_room: Callable[[], None] | None = None
        self.batches: deque[tuple[list[T], int, int]] = deque()
        self._ready = ready
        self._items = 0
        self._size = 0
        self._was_full = False

    def __len__(self) -> int:
        """How many items wait."""
        return sum(len(items) for items, _, _ in self.batches)

    @property
    def size(self) -> int:
        """How many bytes wait."""
        return self._size

    @property
    def is_full(self) -> bool:
        """Whether nothing more is to be added for now; `on_room` tells the end of it."""
        return self._items >= LANE_ITEMS or self._size >= self._limit

    def extend(self, items: Sequence[T], size: int) -> None:
        """Add a batch behind all that waits; check `is_full` next.

        Args:
            items: in their order; none of them is None.
            size: how many bytes they have together.
        """
        if not items:
            return
        if not self.batches:
            self._ready.append(self)
        self.batches.append((list(reversed(items)), len(items), size))
        self._items += len(items)
        self._size += size
        self._was_full = self._was_full or self.is_full
        self._inbox.size += size + ITEM_COST * len(items)

    def end_batch(self) -> None:
        """For the inbox: the first batch has been read. The lane goes to the end of those that are ready."""
        _, items, size = self.batches.popleft()
        self._items -= items
        self._size -= size
        self._inbox.size -= size + ITEM_COST * items
        if self.batches:
            self._ready.append(self)
        if self._was_full and self._items <= LANE_ITEMS // 2 and self._size <= self._limit // 2:
            self._was_full = False
            if self.on_room is not None:
                self.on_room()


class Inbox(Generic[T]):
    """What waits in all lanes. Those in which nothing waits are not known here, so none has to be removed.

    Args:
        limit: bytes with which it is full; one batch may pass it.

    Attributes:
        size: bytes of all that waits, ITEM_COST for each item included.
        on_room: called once when a full inbox has become half empty, at the end of `pop`. It must not raise.
    """

    def __init__(self, limit: int = INBOX_SIZE) -> None:
        self.size = 0
        self.on_room: Callable[[], None] | None = None
        self._limit = limit
        self._was_full = False
        self._run = 0
        """Control items in a row while bulk waited."""
        self._ready: tuple[deque[Lane[T]], deque[Lane[T]]] = (deque(), deque())

    def __len__(self) -> int:
        """How many items wait; counted anew."""
        return sum(len(lane) for ready in self._ready for lane in ready)

    @property
    def is_full(self) -> bool:
        """Whether nothing more is to be added to any lane for now; `on_room` tells the end of it."""
        self._was_full = self._was_full or self.size >= self._limit
        return self._was_full

    def lane(self, priority: Priority, limit: int = LANE_SIZE) -> Lane[T]:
        """A new lane, which is full with `limit` bytes."""
        return Lane(self, limit, self._ready[priority])

    def pop(self) -> T | None:
        """The next item; None when there is none.

        Control lanes come before bulk ones, but for one bulk item behind every CONTROL_RUN of theirs: a neighbour that
        calls all of its own urgent does not silence the others. Those of one priority take turns, with one item each.
        """
        control, bulk = self._ready
        self._run = self._run + 1 if control and bulk and self._run < CONTROL_RUN else 0
        for ready in (control, bulk) if self._run or not bulk else (bulk, control):
            if ready:
                lane = ready.popleft()
                items = lane.batches[0][0]
                item = items.pop()
                if items:
                    ready.append(lane)
                else:
                    lane.end_batch()
                    if self._was_full and self.size <= self._limit // 2:
                        self._was_full = False
                        if self.on_room is not None:
                            self.on_room()
                return item
        return None
