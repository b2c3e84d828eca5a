"""Everything that one neighbour is owed: it waits, is under way, is acknowledged, or comes back. Pure.

Frames wait here and nowhere else. A lane's stream asks for bytes when they can leave, and what it has been given has
left; so control overtakes bulk up to the last moment, a frame whose age runs out has really not been sent, and of each
one that comes back it is known whether the neighbour may have it.

    put ──> waiting ──pull──> under way ──delivered──> acknowledged
               │  └─pull_datagram──> (forgotten)
               └── expire, end ──> returned <── expire, end ── (maybe_delivered)

Ages are looked at no more often than each LOOK_EVERY seconds, and then at all of them: deadlines come in any order, and
nearly always a frame has left and is acknowledged long before its own. For each frame only the earliest is noted.
"""

from collections import deque
from collections.abc import Callable, Iterable
from enum import StrEnum
from itertools import chain
from math import inf
from typing import Final, NamedTuple

from overlay.protocol.driver.under_way import Entry, UnderWay
from overlay.protocol.driver.wire import DATAGRAM_OVERHEAD, encode_datagram, frame_head
from overlay.protocol.frames import VARINT_MAX
from overlay.protocol.stream import Priority

BATCH: Final = 256
"""Frames in one pull: small ones would otherwise be a turn of the loop in which nothing else happens."""
UNDER_WAY: Final = 64 * 1024
"""Frames of one lane that are not acknowledged. Their bytes are bounded by the stream's credit, but empty ones have
hardly any."""
LOOK_EVERY: Final = 0.1
"""Seconds between two looks at all ages; a frame comes back that much late at most, but never leaves late."""


class Reason(StrEnum):
    """Why a frame comes back."""

    EXPIRED = "its age limit is over"
    QUEUE_FULL = "too much waits for that peer"
    SESSION_OVER = "the session is over"
    TOO_LONG = "it is longer than that peer takes"
    STOPPED = "peering was stopped"
    NO_DRIVER = "that peer runs no driver, or no longer"
    CLOSED = "the driver was closed"


class Returned(NamedTuple):
    """A frame that is not known to have arrived."""

    frame: bytes
    reason: Reason
    maybe_delivered: bool
    """Whether any byte of it has left."""


class _Lane:
    """What is owed with one priority."""

    __slots__ = ("datagrams", "greeting", "offset", "queue", "size", "under_way")

    def __init__(self, greeting: bytes) -> None:
        self.greeting = greeting
        """Not pulled yet."""
        self.queue: deque[Entry] = deque()
        self.datagrams: deque[Entry] = deque()
        """Unreliable ones that have not been found too long for a datagram."""
        self.size = 0
        """Bytes of the frames in both."""
        self.under_way = UnderWay()
        self.offset = 0
        """Bytes pulled."""

    def earliest(self) -> float:
        """No deadline is before it."""
        return min(self.under_way.earliest, *(entry[1] for entry in chain(self.queue, self.datagrams)), inf)


class Outbox:
    """What one neighbour is owed, over one session.

    `take_returned` after every other call tells what came back; it is kept until then.

    Args:
        frames: how many may wait, for each priority on its own.
        size: how many bytes they may have, for each priority on its own.
        greeting: the first bytes of each lane.
    """

    def __init__(self, *, frames: int, size: int, greeting: bytes) -> None:
        self._frames = frames
        self._size = size
        self._lanes = tuple(_Lane(greeting) for _ in Priority)
        self._greeted = False
        self._longest = VARINT_MAX
        """A longer one comes back at once, for `_refusal`."""
        self._refusal = Reason.TOO_LONG
        self._earliest = inf
        """No deadline of any frame here is before it."""
        self._look_at = -inf
        """No look at the ages before it."""
        self._returned: list[Returned] = []

    @property
    def queued_frames(self) -> int:
        """How many frames wait."""
        return sum(len(lane.queue) + len(lane.datagrams) for lane in self._lanes)

    @property
    def queued_size(self) -> int:
        """How many bytes the frames have that wait."""
        return sum(lane.size for lane in self._lanes)

    @property
    def unacknowledged_size(self) -> int:
        """How many bytes the frames have that have been pulled, and are neither acknowledged nor came back."""
        return sum(lane.under_way.size for lane in self._lanes)

    @property
    def unacknowledged_frames(self) -> int:
        """How many those are."""
        return sum(lane.under_way.frames for lane in self._lanes)

    def is_full(self, priority: Priority, size: int = 0) -> bool:
        """Whether `put` would refuse a frame of `size` bytes, as too much waits with its priority."""
        lane = self._lanes[priority]
        return len(lane.queue) + len(lane.datagrams) >= self._frames or lane.size + size > self._size

    def is_busy(self, priority: Priority) -> bool:
        """Whether more than half of what may wait with that priority does."""
        lane = self._lanes[priority]
        return 2 * (len(lane.queue) + len(lane.datagrams)) > self._frames or 2 * lane.size > self._size

    def has_lane_work(self, priority: Priority) -> bool:
        """Whether `pull` may have something: tell the stream of it. That may begin with any other call."""
        lane = self._lanes[priority]
        return bool(lane.greeting or (self._greeted and lane.queue and lane.under_way.frames < UNDER_WAY))

    @property
    def has_datagram_work(self) -> bool:
        """Whether `pull_datagram` may have something: tell the session of it."""
        return self._greeted and any(lane.datagrams for lane in self._lanes)

    # ---------------------------------------------------------------- commands

    def put(self, frame: bytes, *, priority: Priority, reliable: bool, deadline: float) -> bool:
        """Owe the neighbour a frame; False, and nothing has changed, when too much waits with that priority.

        One that is longer than the neighbour takes comes back at once, and so does every one after `end`.

        Args:
            frame: it must not change any more.
            priority: whom it overtakes.
            reliable: whether it travels in the lane, and comes back unless it is acknowledged.
            deadline: when it comes back, unless it is acknowledged by then: a time as `now` is.
        """
        size = len(frame)
        if size > self._longest:
            self._returned.append(Returned(frame, self._refusal, maybe_delivered=False))
            return True
        lane = self._lanes[priority]
        queue = lane.queue
        if len(queue) + len(lane.datagrams) >= self._frames or lane.size + size > self._size:
            return False
        if not reliable:
            queue = lane.datagrams
        queue.append((frame, deadline, reliable))
        lane.size += size
        if deadline < self._earliest:  # noqa: PLR1730 - min() would cost a tenth of this call
            self._earliest = deadline
        return True

    def end(self, reason: Reason) -> None:
        """The session is over: all that is left comes back, and so will what is put from now on."""
        for lane in self._lanes:
            self._return(lane.under_way, reason, sent=True)
            self._return(lane.queue, reason, sent=False)
            self._return(lane.datagrams, reason, sent=False)
        self._lanes = tuple(_Lane(b"") for _ in Priority)
        self._earliest = inf
        self._longest = -1
        self._refusal = reason

    # ---------------------------------------------------------------- inputs

    def greeted(self, longest: int) -> None:
        """The neighbour's greeting has come: frames may leave, and those that it does not take come back.

        Args:
            longest: how many bytes a frame may have that it takes.
        """
        self._greeted = True
        if longest >= self._longest:
            return
        self._longest = longest
        for lane in self._lanes:
            self._withdraw(lane, lambda entry: len(entry[0]) > longest, Reason.TOO_LONG)

    def delivered(self, priority: Priority, offset: int) -> int:
        """The neighbour has the first `offset` bytes of that lane, greeting included.

        Returns:
            How many bytes the frames have that are whole there since the last call.
        """
        return self._lanes[priority].under_way.acknowledge(offset)

    def expire(self, now: float) -> None:
        """Frames come back whose deadline is over. Before `next_timeout` it does nothing."""
        if now < max(self._earliest, self._look_at):
            return
        self._look_at = now + LOOK_EVERY
        for lane in self._lanes:
            self._withdraw(lane, lambda entry: entry[1] <= now, Reason.EXPIRED)
            self._return(lane.under_way.expire(now), Reason.EXPIRED, sent=True)
        self._earliest = min(lane.earliest() for lane in self._lanes)

    # ---------------------------------------------------------------- outputs

    def pull(self, priority: Priority, room: int, now: float) -> bytes:
        """The next bytes of that lane: its greeting, then whole frames; b"" when nothing can leave.

        Frames whose deadline is over are left out and come back. All others that are pulled have left, in so far as
        their bytes are: there is at most one that does not fit into `room`, the last one, and a part of it does.

        Args:
            priority: which lane's stream asks.
            room: how many bytes leave now, at least 1.
            now: the time, in seconds.

        Returns:
            Up to `room` bytes and one frame, of at most BATCH frames.
        """
        lane = self._lanes[priority]
        parts = []
        taken = 0
        if lane.greeting:
            parts.append(lane.greeting)
            taken = len(lane.greeting)
            lane.offset = taken
            lane.greeting = b""
        queue = lane.queue
        if not (queue and self._greeted):
            return b"".join(parts)
        before = taken
        entries: list[Entry] = []
        late: list[Entry] = []
        left = min(BATCH, UNDER_WAY - lane.under_way.frames)
        while left > 0 and taken < room and queue:
            entry = queue.popleft()
            frame = entry[0]
            if entry[1] <= now:
                late.append(entry)
                continue
            head = frame_head(len(frame))
            parts += (head, frame)
            taken += len(head) + len(frame)
            entries.append(entry)
            left -= 1
        if late:
            lane.size -= sum(len(entry[0]) for entry in late)
            self._return(late, Reason.EXPIRED, sent=False)
        if entries:
            lane.size -= lane.under_way.add(lane.offset, entries)
            lane.offset += taken - before
        return b"".join(parts)

    def pull_datagram(self, limit: int, now: float) -> bytes | None:
        """The next unreliable frame, as a datagram, control first; None when there is none.

        It has left, and is forgotten. One that is too long goes to the end of its lane's queue, and one whose deadline
        is over comes back.

        Args:
            limit: bytes of the longest datagram that the path carries.
            now: the time, in seconds.
        """
        if not self._greeted:
            return None
        for priority, lane in zip(Priority, self._lanes, strict=True):
            while lane.datagrams:
                entry = lane.datagrams.popleft()
                frame, deadline, _ = entry
                if deadline > now and len(frame) + DATAGRAM_OVERHEAD > limit:
                    lane.queue.append(entry)
                    continue
                lane.size -= len(frame)
                if deadline > now:
                    return encode_datagram(priority, frame)
                self._return((entry,), Reason.EXPIRED, sent=False)
        return None

    def next_timeout(self) -> float | None:
        """When `expire` is due; None while no frame with a deadline is here."""
        return None if self._earliest == inf else max(self._earliest, self._look_at)

    def take_returned(self) -> list[Returned]:
        """What has come back since the last call, each frame once."""
        returned, self._returned = self._returned, []
        return returned

    # ---------------------------------------------------------------- private

    def _withdraw(self, lane: _Lane, leaves: Callable[[Entry], bool], reason: Reason) -> None:
        """Of all that waits in the lane, what `leaves` says comes back."""
        for queue in (lane.queue, lane.datagrams):
            leaving = [entry for entry in queue if leaves(entry)]
            if leaving:
                staying = [entry for entry in queue if not leaves(entry)]
                queue.clear()
                queue.extend(staying)
                lane.size -= sum(len(entry[0]) for entry in leaving)
                self._return(leaving, reason, sent=False)

    def _return(self, entries: Iterable[Entry], reason: Reason, *, sent: bool) -> None:
        """Hand frames back, except unreliable ones that have been sent."""
        self._returned.extend(Returned(frame, reason, sent) for frame, _, reliable in entries if reliable or not sent)
