"""What a `Driver` receives: the lanes and datagrams of all neighbours, handed out in a fair order.

A lane is read only as fast as its frames are fetched: what is not fetched waits in the stream, whose flow control stops
the sender, whose own queue is bounded. So a router that is behind is never buried, and a peer that sends more than
others takes nothing from them.

What has arrived is acknowledged, so its sender will not get it back: it can be fetched after the end of its lane, its
session, and the driver itself. At such an end all of it is taken out of the stream at once. There is a bound to that as
well, or whoever begins a session again and again would fill the memory: beyond LEFT_BEHIND it is dropped, and told.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, NamedTuple

from overlay.errors import DriverClosed
from overlay.events import Path
from overlay.identity import PeerId
from overlay.protocol.driver import wire
from overlay.protocol.driver.inbox import Inbox, Lane
from overlay.protocol.stream import Priority
from overlay.session import Session
from overlay.streams import Stream

logger = logging.getLogger("overlay")

READ: Final = 64 * 1024
"""Bytes of a lane that are parsed at a time."""
DATAGRAMS: Final = 1024 * 1024
"""Bytes of datagrams of one peer that wait, for each priority: nothing stops it, and one turn of the event loop may
bring what a socket holds."""
LANES_PER_PEER: Final = 4
"""Lanes of a peer that are read at once: two, and two of a driver that was there before. The others wait."""
CROWD: Final = 64
LEFT_BEHIND: Final = 8 * 1024 * 1024
"""Bytes with which a peer's queue takes no more of what a lane leaves behind: twice what a stream may have unread."""


class Received(NamedTuple):
    """A frame that has arrived."""

    frame: bytes
    peer_id: PeerId
    """The neighbour that has sent it: its proven key."""
    path: Path | None
    """The path that it came over; None if that is gone already."""


class Receiver:
    """The frames that have come and wait for `next`.

    Args:
        limit: bytes of the longest frame that is taken; who sends a longer one is disconnected.
        greeted: told of each lane's greeting.
        arrived: told how many bytes have come.
        misbehaved: told who broke the rules, and how.
    """

    def __init__(
        self,
        limit: int,
        greeted: Callable[[Stream, wire.Greeting], None],
        arrived: Callable[[Session, int], None],
        misbehaved: Callable[[Session, str], None],
    ) -> None:
        self._limit = limit
        self._greeted = greeted
        self._arrived = arrived
        self._misbehaved = misbehaved
        self._inbox: Inbox[Received] = Inbox()
        self._room = asyncio.Event()
        self._inbox.on_room = self._room.set
        self._sources: dict[PeerId, _Source] = {}
        self._crowd = CROWD
        """With so many sources it is looked for those that are done."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self._ended = True
        self._closing = True
        """No more lanes are read."""

    def __len__(self) -> int:
        return len(self._inbox)

    async def next(self) -> Received:
        """See `Driver.next`."""
        while True:
            received = self._inbox.pop()
            if received is not None:
                return received
            if self._ended:
                raise DriverClosed("the driver is not open")
            self._news.clear()
            await self._news.wait()

    def begin(self) -> None:
        """Something may come from now on."""
        self._ended = self._closing = False

    def end(self) -> None:
        """Nothing comes any more; what is there can still be fetched."""
        self._ended = True
        self._news.set()

    async def aclose(self) -> None:
        """End the handlers of lanes."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def session_over(self, peer_id: PeerId) -> None:
        """A session with that peer has ended: nobody waits for room any more to read what it has left behind."""
        source = self._sources.get(peer_id)
        if source is not None:
            for lane in source.lanes.values():
                lane.room.set()
            self._room.set()

    async def serve_lane(self, stream: Stream) -> None:
        """The handler of a lane: read it to its end."""
        source = self._source(stream.session.peer_id)
        reader, lane = wire.LaneReader(self._limit), source.lanes[stream.priority]
        if self._closing:
            # Begun before the end, run behind it.
            self._clear(stream, reader, lane, b"")
            await stream.reset()
            await stream.stop()
            return
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a handler always is one
        self._tasks.add(task)
        source.readers += 1
        # Woken by what the reader adds, `next` would run a turn of the loop later; on a busy node that is as long as
        # all sockets are read for once.
        stream.on_change = self._news.set
        data = b""
        try:
            async with source.turns:
                while await self._wait_room(lane, stream.session):
                    data = await stream.read(READ)
                    if not data:
                        return
                    # Meanwhile others may have filled what was free.
                    await self._wait_room(lane, stream.session)
                    taken, data = data, b""
                    self._take(stream, reader, lane, taken)
        except wire.WireError as error:
            self._misbehaved(stream.session, error.reason)
            data = b""
        finally:
            self._tasks.discard(task)
            source.readers -= 1
            if not reader.is_broken:
                self._clear(stream, reader, lane, data)

    def _clear(self, stream: Stream, reader: wire.LaneReader, lane: "_Lane", data: bytes) -> None:
        """Take all that a lane leaves behind: of its session, or of a driver that is being closed."""
        while data or (data := stream.read_nowait(READ)):
            if lane.queue.size > LEFT_BEHIND:
                peer_id = stream.session.peer_id
                logger.warning("%s begins anew faster than its frames are fetched: some are dropped", peer_id)
                return
            try:
                self._take(stream, reader, lane, data)
            except wire.WireError as error:
                logger.debug("%r left garbage behind: %s", stream, error.reason)
                return
            data = b""

    def _take(self, stream: Stream, reader: wire.LaneReader, lane: "_Lane", data: bytes) -> None:
        is_new = reader.greeting is None
        frames = reader.receive(data)
        if is_new and reader.greeting is not None:
            self._greeted(stream, reader.greeting)
        self._add(stream.session, lane.queue, frames, len(data))

    def datagram_received(self, session: Session, data: bytes) -> None:
        """The sink of a session's datagrams: what comes faster than it is fetched is dropped."""
        datagram = wire.decode_datagram(data)
        if datagram is None:
            return
        priority, frame = datagram
        queue = self._source(session.peer_id).datagrams[priority]
        if len(frame) > self._limit:
            self._misbehaved(session, f"a frame of {len(frame)} bytes, the limit is {self._limit}")
        elif not (queue.is_full or self._inbox.is_full):
            self._add(session, queue, [frame], len(frame))

    async def _wait_room(self, lane: "_Lane", session: Session) -> bool:
        """Wait until more may be read; False: the session is over."""
        while session.state != "closed":
            if lane.queue.is_full:
                lane.room.clear()
                await lane.room.wait()
            elif self._inbox.is_full:
                self._room.clear()
                await self._room.wait()
            else:
                return True
        return False

    def _add(self, session: Session, queue: Lane[Received], frames: list[bytes], size: int) -> None:
        if frames:
            peer_id, path = session.peer_id, session.received_on
            queue.extend([Received(frame, peer_id, path) for frame in frames], size)
            self._arrived(session, size)
            self._news.set()

    def _source(self, peer_id: PeerId) -> "_Source":
        """What waits of a peer outlives its session: it may not have more by coming again."""
        source = self._sources.get(peer_id)
        if source is None:
            if len(self._sources) >= self._crowd:
                self._sources = {key: one for key, one in self._sources.items() if not one.is_done}
                self._crowd = max(CROWD, 2 * len(self._sources))
            source = self._sources[peer_id] = _Source(self._inbox)
        return source


class _Lane:
    """What waits of a lane, and its readers' wait for room."""

    def __init__(self, queue: Lane[Received]) -> None:
        self.queue = queue
        self.room = asyncio.Event()
        queue.on_room = self.room.set


class _Source:
    """What waits of one peer."""

    def __init__(self, inbox: Inbox[Received]) -> None:
        self.readers = 0
        """Its lanes that are read, or wait for that."""
        self.turns = asyncio.Semaphore(LANES_PER_PEER)
        self.lanes = {priority: _Lane(inbox.lane(priority)) for priority in Priority}
        self.datagrams = {priority: inbox.lane(priority, DATAGRAMS) for priority in Priority}

    @property
    def is_done(self) -> bool:
        queues = [*(lane.queue for lane in self.lanes.values()), *self.datagrams.values()]
        return not self.readers and not any(map(len, queues))
