"""One neighbour of a `Driver`: a session, two lanes for reliable frames, and datagrams. An asyncio shell over `Outbox`.

The way of a frame: `put` queues it and tells its stream that there is more; at the end of this turn of the event loop
the session asks for as much as can leave (`_pull`), so all frames of the turn leave together. The way of one that
fails: the outbox gives it back, and `_settle` hands it on.

It ends with its session, with the peer's driver, or with ours; another one may follow on the same session.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

from overlay.errors import OverlayError, SessionError, StreamError
from overlay.protocol.driver import wire
from overlay.protocol.driver.outbox import Outbox, Reason, Returned
from overlay.protocol.driver.rate import Rate
from overlay.protocol.stream import Priority
from overlay.session import Session
from overlay.streams import Stream

clock = time.monotonic

RETRY: Final = 0.02
"""Seconds."""


class Neighbour:
    """What the driver is to deliver to one peer.

    Args:
        session: with the peer.
        outbox: its queues.
        hand_back: takes frames that come back.

    Attributes:
        greeting: what the peer's driver has said; None before.
        longest: bytes of the longest frame that it takes; None before.
        since: when it said so, by `time.monotonic`.
        goodput_out, goodput_in: bytes of frames.
        returned: how many frames have come back.
        task: runs `serve`.
    """

    def __init__(
        self, session: Session, outbox: Outbox, hand_back: Callable[["Neighbour", list[Returned]], None]
    ) -> None:
        self.session = session
        self.peer_id = session.peer_id
        self.outbox = outbox
        self.greeting: wire.Greeting | None = None
        self.longest: int | None = None
        self.since = clock()
        self.goodput_out = Rate()
        self.goodput_in = Rate()
        self.returned = 0
        self.greeted_by = -1
        """The peer's lane that has said so; what older ones say is of a driver before."""
        self.is_hasty = False
        """Its lanes were opened before the greeting came, so perhaps to somebody before, or to nobody."""
        self.task: asyncio.Task[None] | None = None
        self._hand_back = hand_back
        self._lanes: dict[Priority, Stream] = {}
        self._room = {priority: asyncio.Event() for priority in Priority}
        self._empty = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._retry: asyncio.TimerHandle | None = None
        self._ended = False

    @property
    def is_cut_off(self) -> bool:
        """It has no path, or none that answers."""
        paths = self.session.paths
        return all(path.suspect for path in paths)

    def is_busy(self, priority: Priority) -> bool:
        """Whether more than half of that queue is taken."""
        return self.outbox.is_busy(priority)

    def greeted(self, greeting: wire.Greeting) -> None:
        """The peer's driver is there: frames may leave."""
        self.is_hasty = bool(self._lanes)
        self.greeting = greeting
        self.longest = greeting.longest
        self.since = clock()
        self.outbox.greeted(greeting.longest)
        self._more()
        self._settle()

    def put(self, frame: bytes, priority: Priority, *, reliable: bool, deadline: float) -> bool:
        """Queue a frame; False: the queue is full.

        Args:
            frame: not longer than `longest`.
            priority: which of the two queues.
            reliable: see `Driver.send`.
            deadline: by `time.monotonic`.
        """
        if not self.outbox.put(frame, priority=priority, reliable=reliable, deadline=deadline):
            return False
        if not reliable:
            self.session.more_datagrams()
        elif (lane := self._lanes.get(priority)) is not None:
            lane.more()
        if self._timer is None or deadline < self._timer_at:
            self._set_timer(deadline)
        return True

    async def wait_room(self, priority: Priority, until: float) -> bool:
        """Wait until half of that queue is free, or the neighbour has ended. Cancellation is harmless.

        Args:
            priority: which queue.
            until: the time limit, by `time.monotonic`.

        Returns:
            Whether that was so in time.
        """
        room = self._room[priority]
        room.clear()
        self._settle()
        try:
            async with asyncio.timeout(until - clock()):
                await room.wait()
        except TimeoutError:
            return False
        return True

    async def wait_delivered(self) -> None:
        """Wait until nothing is queued or under way any more, or it has ended. Cancellation is harmless."""
        while not self._ended:
            self.look()
            if self.outbox.queued_frames:
                self._empty.clear()
                await self._empty.wait()
            elif self.outbox.unacknowledged_frames:
                try:
                    for lane in tuple(self._lanes.values()):
                        await lane.wait_delivered()
                except (StreamError, SessionError):
                    return
            else:
                return

    def look(self) -> None:
        """Find out what has been acknowledged; nobody tells, as nobody has to know at once."""
        now = clock()
        for priority, lane in self._lanes.items():
            self._look_at(priority, lane, now)

    async def serve(self, datagram_received: Callable[[Session, bytes], None]) -> OverlayError:
        """Open the lanes, and watch whether the peer's driver is there; why it is not, or no longer.

        Args:
            datagram_received: gets what comes meanwhile.
        """
        try:
            self.session.supply_datagrams(self._pull_datagram)
            self.session.deliver_datagrams(partial(datagram_received, self.session))
            async with asyncio.TaskGroup() as group:
                for priority in Priority:
                    group.create_task(self._serve_lane(priority))
        except* (StreamError, SessionError) as errors:
            error = _first(errors)
        finally:
            self.session.deliver_datagrams(None)
            for lane in self._lanes.values():
                # No reset: it would take away what has arrived there and is acknowledged, but not read yet.
                with suppress(StreamError, SessionError):
                    await lane.write_eof()
                await lane.stop()
        return error

    async def _serve_lane(self, priority: Priority) -> None:
        stream = await self.session.open_stream(wire.PROTOCOL, priority=priority)
        self._lanes[priority] = stream
        stream.supply(partial(self._pull, priority))
        stream.more()
        # The peer's driver never writes here: its half ends when it does.
        await stream.read(1)
        raise StreamError("the peer's driver has ended")

    def end(self, reason: Reason) -> None:
        """All that the peer has not acknowledged comes back; nothing leaves any more."""
        self.look()
        self._ended = True
        self.outbox.end(reason)
        for timer in (self._timer, self._retry):
            if timer is not None:
                timer.cancel()
        self._settle()

    # ---------------------------------------------------------------- what the session asks

    def _pull(self, priority: Priority, room: int) -> bytes:
        now = clock()
        self._look_at(priority, self._lanes[priority], now)
        data = self.outbox.pull(priority, room, now)
        if not data and self._retry is None and self.outbox.queued_frames:
            # So many of the smallest frames are under way that acknowledgements have to be waited for.
            self._retry = asyncio.get_running_loop().call_later(RETRY, self._try_again)
        self._settle()
        return data

    def _pull_datagram(self, limit: int) -> bytes | None:
        data = self.outbox.pull_datagram(limit, clock())
        if data is None:
            # Those that are too long for a datagram have gone to their lane; but it must not be told from in here.
            asyncio.get_running_loop().call_soon(self._more)
        self._settle()
        return data

    # ---------------------------------------------------------------- helpers

    def _more(self) -> None:
        for priority, lane in self._lanes.items():
            if self.outbox.has_lane_work(priority):
                lane.more()
        if self.outbox.has_datagram_work:
            self.session.more_datagrams()

    def _try_again(self) -> None:
        self._retry = None
        self.look()
        self._more()

    def _look_at(self, priority: Priority, lane: Stream, now: float) -> None:
        delivered = self.outbox.delivered(priority, lane.bytes_delivered)
        if delivered:
            self.goodput_out.add(delivered, now)

    def _settle(self) -> None:
        """After anything that may have taken frames out of the queues."""
        if returned := self.outbox.take_returned():
            self._hand_back(self, returned)
        for priority, room in self._room.items():
            if not room.is_set() and (self._ended or not self.outbox.is_busy(priority)):
                room.set()
        if not self.outbox.queued_frames:
            self._empty.set()

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = asyncio.get_running_loop().call_later(max(0.0, at - clock()), self._timeout)

    def _timeout(self) -> None:
        self._timer = None
        self.look()
        # The loop may count whole milliseconds, and wake us a little before the time.
        self.outbox.expire(max(clock(), self._timer_at))
        self._settle()
        at = self.outbox.next_timeout()
        if at is not None:
            self._set_timer(at)


def _first(errors: BaseException) -> OverlayError:
    """One of the errors in a group: all of the lanes end for the same cause."""
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    assert isinstance(errors, OverlayError)  # noqa: S101 - `except*` has sorted them
    return errors
