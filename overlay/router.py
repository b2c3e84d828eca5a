"""`Driver`: what a mesh router imports. Frames to keys, floods, who is there, and back what could not be delivered.

    async with Endpoint(identity) as endpoint, Driver(endpoint) as driver:
        driver.start_peering(ticket)
        await driver.send(frame, FLOOD)
        received = await driver.next()

`Driver` says what a neighbour is, and what is promised of a frame. How it is done: `overlay.neighbour` for what leaves,
`overlay.receiver` for what comes, and without asyncio `overlay.protocol.driver`.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Coroutine
from enum import Enum
from functools import partial
from types import TracebackType
from typing import Any, Final, Self
from weakref import WeakSet

from overlay.addresses import Ticket
from overlay.endpoint import Endpoint
from overlay.errors import (
    BusyError,
    ConfigError,
    DriverClosed,
    EndpointClosed,
    FrameTooLong,
    NotANeighbour,
    SessionError,
    SessionLost,
    UnknownProtocol,
)
from overlay.events import (
    DriverEvent,
    Ear,
    Event,
    Events,
    NeighbourDown,
    NeighbourUp,
    PathChanged,
    PathLost,
    PeerConnected,
    PeerDisconnected,
)
from overlay.identity import PeerId
from overlay.metrics import DriverStatus, Metrics
from overlay.neighbour import Neighbour
from overlay.protocol.codes import CloseCode
from overlay.protocol.driver import wire
from overlay.protocol.driver.outbox import Outbox, Reason, Returned
from overlay.protocol.stream import Priority
from overlay.receiver import Received, Receiver
from overlay.session import Session
from overlay.streams import Stream
from overlay.undelivered import Returns, Undelivered

logger = logging.getLogger("overlay")

clock = time.monotonic

KiB = 1024
MiB = 1024 * KiB

FLUSH_LOOK: Final = 0.1
"""Seconds between two looks for neighbours that have lost their path."""
GIVE_WAY: Final = 64
"""Frames that whoever sends in a loop queues behind more than half a queue, until the event loop may send."""
LONGEST_FRAME: Final = 16 * MiB
"""Bytes. A frame is kept whole in memory at both ends; what is longer is a stream's business."""


class Flood(Enum):
    """To whom, when it is not one peer."""

    FLOOD = "flood"


FLOOD: Final = Flood.FLOOD
"""Every neighbour."""


class Driver:
    """The frames of an endpoint. One driver per endpoint.

    **Neighbours.** Every peer with a session whose own driver has greeted ours is a neighbour, whoever has dialled, and
    over however many connections; it stays one while the session lingers. It comes up once and goes down once
    (`events`), and what is queued for it waits for its path meanwhile, in a queue of its own that delays nobody else.

    **Delivery.** A frame arrives whole and once, or it comes back: at once as an error that holds it, if `send` can't
    take it, later by `undelivered()`. Reliable frames of one priority arrive in their order; `maybe_delivered` tells
    whether some of one had left before it came back. Unreliable ones are datagrams; they come back only if they never
    left. It has arrived when the neighbour's driver has it: what its router does not fetch before it closes its driver,
    or dies, only a router's own acknowledgement could tell.

    **Ends.** A neighbour that closes goes down at once. One that vanishes is suspected within a second or so while
    something is sent to it, after the keepalive (15 to 25 s) otherwise; its paths are `suspect` in `metrics` then.
    After `Config.idle_timeout` (30 s) PathLost tells that it lingers, after `Config.resume_timeout` (two minutes)
    NeighbourDown that it is gone. A router that is to turn away sooner gives its frames deadlines: they come back.

    Used as `async with Driver(endpoint) as driver:`. Leaving waits until the neighbours that have a path have what was
    queued for them, at most `Config.delivery_timeout`; leaving by an exception does not wait. What is left comes back:
    `undelivered()` can still be read then, and ends.

    Args:
        endpoint: open, and open for as long as the driver is. The datagrams of its sessions are the driver's.
        max_frame_size: bytes of the longest frame that is sent and taken, at most 16 MiB; who sends a longer one is
            disconnected.
        age_limit: seconds after which a frame that is not known to have arrived comes back.
        queue_frames: frames that may wait for one neighbour, for each priority.
        queue_size: bytes of them.

    Raises:
        ConfigError: a setting that cannot work.
        BusyError (on entering): the endpoint has another driver, or this one was entered before.
        EndpointClosed (on entering): the endpoint is not open.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        max_frame_size: int = 64 * KiB,
        age_limit: float = 30.0,
        queue_frames: int = 4096,
        queue_size: int = 4 * MiB,
    ) -> None:
        if not 1 <= max_frame_size <= LONGEST_FRAME:
            raise ConfigError(f"max_frame_size must be 1 to {LONGEST_FRAME} bytes, not {max_frame_size}")
        if age_limit <= 0:
            raise ConfigError(f"age_limit must be above 0, not {age_limit}")
        if queue_frames < 1:
            raise ConfigError(f"queue_frames must be at least 1, not {queue_frames}")
        if queue_size < 2 * max_frame_size:
            raise ConfigError(f"queue_size must be at least twice max_frame_size, not {queue_size}")
        self.max_frame_size = max_frame_size
        self._endpoint = endpoint
        self._age_limit = age_limit
        self._queue_frames = queue_frames
        self._queue_size = queue_size
        self._neighbours: dict[PeerId, Neighbour] = {}
        """Those that have not greeted yet, too."""
        self._instance = random.SystemRandom().getrandbits(62)
        """Tells the peers' drivers that this one is not another one that was here before."""
        self._receiver = Receiver(max_frame_size, self._greeted, self._arrived, self._misbehaved)
        self._returns = Returns()
        self._listeners: WeakSet[Events[DriverEvent]] = WeakSet()
        self._tasks: set[asyncio.Task[None]] = set()
        self._hurried = 0
        self._ear = Ear(self._happened)
        self._entered = False
        self._open = False

    # ---------------------------------------------------------------- life

    async def __aenter__(self) -> Self:
        if self._entered:
            raise BusyError("a driver is entered once: make another one")
        if self._endpoint.is_handled(wire.PROTOCOL):
            raise BusyError("the endpoint has another driver")
        self._entered = self._open = True
        # A closed one says at once that there is nothing to be told.
        self._endpoint.subscribe(self._ear)
        if not self._open:
            raise EndpointClosed("enter the endpoint first: async with Endpoint(...) as endpoint, Driver(endpoint) ...")
        self._receiver.begin()
        self._endpoint.handle(wire.PROTOCOL, self._receiver.serve_lane)
        for session in self._endpoint.sessions.values():
            if session.state in {"connected", "lingering"}:
                self._begin(session)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None and self._open:
                await self.flush()
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """End it now: what is queued comes back, the neighbours' drivers are told."""
        if not self._open:
            return
        self._endpoint.unhandle(wire.PROTOCOL)
        self._give_back()
        try:
            await self._receiver.aclose()
        finally:
            self._over()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def flush(self, timeout: float | None = None) -> bool:
        """Wait until the neighbours that have a path that answers have what is queued for them, or it has come back.

        Args:
            timeout: seconds; `Config.delivery_timeout` by default.

        Returns:
            Whether that was so in time.

        Raises:
            DriverClosed: the driver is not open.
        """
        self._check_open()
        timeout = self._endpoint.config.delivery_timeout if timeout is None else timeout
        until = clock() + timeout
        waits = {
            asyncio.create_task(neighbour.wait_delivered()): neighbour
            for neighbour in self._neighbours.values()
            if neighbour.greeting is not None
        }
        try:
            while waits and clock() < until:
                # Who has lost its path meanwhile is not waited for, and nobody tells when one does so in silence.
                await asyncio.wait(waits, timeout=min(FLUSH_LOOK, until - clock()))
                for task, neighbour in tuple(waits.items()):
                    if task.done() or neighbour.is_cut_off:
                        task.cancel()
                        del waits[task]
            return not waits
        finally:
            for task in waits:
                task.cancel()

    def _give_back(self) -> None:
        """Nothing leaves any more."""
        self._open = False
        for neighbour in tuple(self._neighbours.values()):
            self._drop(neighbour, Reason.CLOSED, DriverClosed("this driver was closed"))

    def _over(self) -> None:
        """Nothing comes any more."""
        self._receiver.end()
        self._returns.end()
        for events in self._listeners:
            events.put(None)

    @property
    def peer_id(self) -> PeerId:
        """Our key."""
        return self._endpoint.peer_id

    # ---------------------------------------------------------------- whom it stays with

    def start_peering(self, target: Ticket | PeerId | str) -> PeerId:
        """Stay connected with a peer, for ever; see `Endpoint.keep`. `NeighbourUp` tells when it is there.

        As long as it is not, `Endpoint.peers` tells what was tried, and what came of it.

        Raises:
            AddressError: it is no ticket and no key. An address alone names nobody: ask for the ticket.
            SelfDial: it is our own key. EndpointClosed: the endpoint is not open.
        """
        return self._endpoint.keep(target)

    def stop_peering(self, peer: PeerId | str) -> None:
        """Stay connected with a peer no longer: its session ends, its frames come back.

        It may dial us again, and is a neighbour then; `Endpoint.block` keeps it out.
        """
        peer_id = PeerId.parse(peer) if isinstance(peer, str) else peer
        self._endpoint.release(peer_id)
        neighbour = self._neighbours.get(peer_id)
        if neighbour is not None:
            self._drop(neighbour, Reason.STOPPED, DriverClosed("peering was stopped"))
        session = self._endpoint.sessions.get(peer_id)
        if session is not None:
            session.close(reason="peering was stopped")

    def neighbours(self) -> list[PeerId]:
        """Who is there; those whose session lingers too."""
        return [peer_id for peer_id, neighbour in self._neighbours.items() if neighbour.greeting is not None]

    # ---------------------------------------------------------------- frames

    async def send(
        self,
        frame: bytes | bytearray | memoryview,
        target: PeerId | Flood,
        *,
        exclude: PeerId | None = None,
        priority: Priority = Priority.BULK,
        reliable: bool = True,
        deadline: float | None = None,
        wait: bool = False,
    ) -> int:
        """Queue a frame for a peer, or for every neighbour but one.

        It does not wait for any peer: a queue that is full gives the frame back by `undelivered`. What is sent in one
        turn of the event loop leaves together; when much is queued, the event loop gets a turn. Cancellation: it is not
        queued.

        Args:
            frame: up to `max_frame_size` bytes.
            target: a peer with a session, or `FLOOD`.
            exclude: the neighbour that a flood does not go to, such as the one that it came from.
            priority: `Priority.CONTROL` overtakes all `BULK`, and has a queue of its own.
            reliable: sent until it is acknowledged; False: once, as a datagram, or if it is longer than `mtu(peer)`
                as a reliable one that does not come back once it has begun to leave.
            deadline: seconds from now after which it comes back if it is not known to have arrived; `age_limit` by
                default. One that is shorter than a busy link takes brings frames back that arrive nevertheless: who
                sends them again is to give them more time.
            wait: with one peer as the target, wait for room in its queue, at most until the deadline.

        Returns:
            How many neighbours it is queued for.

        Raises:
            FrameTooLong: it is longer than `max_frame_size`, or than that peer takes; nothing was sent.
            NotANeighbour: there is no session with that peer, or no driver there.
            DriverClosed: the driver is not open.
            TypeError, ValueError: a target, a frame or a deadline that is none; `wait` for a flood.
        """
        self._check_open()
        if type(frame) is not bytes:
            frame = bytes(memoryview(frame))
        if len(frame) > self.max_frame_size:
            raise FrameTooLong(frame, self.max_frame_size)
        if deadline is not None and not deadline >= 0:
            raise ValueError(f"a deadline is 0 or more seconds from now, not {deadline}")
        at = clock() + (self._age_limit if deadline is None else deadline)
        if target is FLOOD:
            if wait:
                raise ValueError("a flood waits for nobody")
            return await self._flood(frame, exclude, priority, reliable, at)
        if not isinstance(target, PeerId):
            raise TypeError(f"the target of a frame is a PeerId or FLOOD, not {target!r}")
        neighbour = self._to(target, frame)
        if neighbour.is_busy(priority):
            await self._give_way()
            neighbour = self._to(target, frame)
        while not neighbour.put(frame, priority, reliable=reliable, deadline=at):
            if not wait or not await neighbour.wait_room(priority, at):
                self._refuse(neighbour, frame, Reason.QUEUE_FULL)
                return 0
            neighbour = self._to(target, frame)
        return 1

    async def _flood(self, frame: bytes, exclude: PeerId | None, priority: Priority, reliable: bool, at: float) -> int:
        if not isinstance(exclude, PeerId | None):
            raise TypeError(f"exclude is one PeerId, not {exclude!r}")
        if any(one.is_busy(priority) for one in self._neighbours.values()):
            await self._give_way()
            self._check_open()
        count = 0
        for peer_id, neighbour in tuple(self._neighbours.items()):
            if peer_id == exclude or neighbour.longest is None:
                continue
            if len(frame) > neighbour.longest:
                self._refuse(neighbour, frame, Reason.TOO_LONG)
            elif neighbour.put(frame, priority, reliable=reliable, deadline=at):
                count += 1
            else:
                self._refuse(neighbour, frame, Reason.QUEUE_FULL)
        return count

    async def _give_way(self) -> None:
        # Not each time: while a dead neighbour's queue is full, the frames of the others are to leave together.
        self._hurried += 1
        if self._hurried >= GIVE_WAY:
            self._hurried = 0
            await asyncio.sleep(0)

    def _check_open(self) -> None:
        if not self._open:
            raise DriverClosed("the driver is not open: async with Driver(endpoint) as driver")

    def _to(self, target: PeerId, frame: bytes) -> Neighbour:
        """The neighbour that a frame is for.

        Raises:
            NotANeighbour, FrameTooLong, DriverClosed: as for `send`.
        """
        self._check_open()
        neighbour = self._neighbours.get(target)
        if neighbour is None:
            raise NotANeighbour(target, frame, connected=target in self._endpoint.sessions)
        if neighbour.longest is not None and len(frame) > neighbour.longest:
            raise FrameTooLong(frame, neighbour.longest)
        return neighbour

    def next(self) -> Coroutine[Any, Any, Received]:
        """The next frame: those of control priority first, then from each neighbour in its turn. Cancellation-safe.

        Until it is called, what has come waits in bounded queues, and the neighbours behind full ones have to wait.

        Raises:
            DriverClosed: the driver is closed, and all that had come before was fetched.
        """
        return self._receiver.next()

    async def __aiter__(self) -> AsyncIterator[Received]:
        """Frames as they come, until the driver is closed."""
        while True:
            try:
                received = await self.next()
            except DriverClosed:
                return
            yield received

    def undelivered(self) -> Returns:
        """The frames that come back: `async for lost in driver.undelivered()`. Each comes to one reader."""
        return self._returns

    # ---------------------------------------------------------------- how things are

    @property
    def size_hint(self) -> int:
        """Bytes of a frame that goes in one datagram to every neighbour that has a path; 0 without one."""
        sizes = [self.mtu(peer_id) for peer_id in self.neighbours()]
        return min((size for size in sizes if size), default=0)

    def mtu(self, peer_id: PeerId) -> int:
        """Bytes of the longest frame that goes to a neighbour in one datagram now; 0 without a path.

        Raises:
            NotANeighbour: there is no session with it.
        """
        neighbour = self._of(peer_id)
        return max(0, min(neighbour.session.max_datagram_size - wire.DATAGRAM_OVERHEAD, self.max_frame_size))

    def metrics(self, peer_id: PeerId) -> Metrics:
        """How good the link to a neighbour is.

        Raises:
            NotANeighbour: there is no session with it.
        """
        neighbour = self._of(peer_id)
        neighbour.look()
        now = clock()
        outbox = neighbour.outbox
        paths = tuple(neighbour.session.paths)
        path = paths[0] if paths else None
        return Metrics(
            peer_id=peer_id,
            since=now - neighbour.since,
            lingering=neighbour.session.state == "lingering",
            direction=None if path is None else path.direction,
            rtt=None if path is None else path.rtt,
            loss=None if path is None else path.loss,
            mtu=self.mtu(peer_id),
            longest_frame=min(self.max_frame_size, neighbour.longest or self.max_frame_size),
            goodput_out=neighbour.goodput_out.per_second(now),
            goodput_in=neighbour.goodput_in.per_second(now),
            queued_frames=outbox.queued_frames,
            queued_size=outbox.queued_size,
            unacknowledged_size=outbox.unacknowledged_size,
            undelivered=neighbour.returned,
            paths=paths,
        )

    def status(self) -> DriverStatus:
        """What the driver is doing."""
        return DriverStatus(
            peer_id=self.peer_id,
            neighbours=tuple(map(self.metrics, self.neighbours())),
            received_waiting=len(self._receiver),
            undelivered_waiting=len(self._returns),
            undelivered_dropped=self._returns.dropped,
        )

    def events(self) -> Events[DriverEvent]:
        """Neighbours that come and go, and their paths, from this call on, until the driver is closed."""
        events: Events[DriverEvent] = Events()
        self._listeners.add(events)
        if not self._open:
            events.put(None)
        return events

    def _of(self, peer_id: PeerId) -> Neighbour:
        neighbour = self._neighbours.get(peer_id)
        if neighbour is None:
            raise NotANeighbour(peer_id, connected=peer_id in self._endpoint.sessions)
        return neighbour

    # ---------------------------------------------------------------- what happens

    def _happened(self, event: Event | None) -> None:
        """Something has happened at the endpoint; None: it is closed."""
        if not self._open:
            # Nobody can unsubscribe, and this driver may be held beyond its end.
            return
        match event:
            case None:
                self._give_back()
                self._over()
            case PeerConnected(peer_id):
                if (session := self._endpoint.sessions.get(peer_id)) is not None:
                    self._begin(session)
            case PeerDisconnected(peer_id, reason):
                self._receiver.session_over(peer_id)
                neighbour = self._neighbours.get(peer_id)
                if neighbour is not None:
                    self._drop(neighbour, Reason.SESSION_OVER, reason)
            case PathChanged(peer_id) | PathLost(peer_id):
                neighbour = self._neighbours.get(peer_id)
                if neighbour is not None and neighbour.greeting is not None:
                    self._publish(event)
            case _:
                # SessionReplaced: a PeerDisconnected and a PeerConnected tell the same.
                pass

    def _begin(self, session: Session) -> Neighbour:
        """See whether the peer has a driver."""
        if (before := self._neighbours.get(session.peer_id)) is not None:
            self._drop(before, Reason.SESSION_OVER, SessionLost("the peer has begun another session"))
        neighbour = Neighbour(
            session,
            Outbox(
                greeting=wire.Greeting(self.max_frame_size, self._instance).encode(),
                frames=self._queue_frames,
                size=self._queue_size,
            ),
            self._returned,
        )
        self._neighbours[session.peer_id] = neighbour
        neighbour.task = self._spawn(self._serve(neighbour), f"frames to {session.peer_id.short}")
        return neighbour

    async def _serve(self, neighbour: Neighbour) -> None:
        error = await neighbour.serve(self._receiver.datagram_received)
        reason = Reason.SESSION_OVER if isinstance(error, SessionError) else Reason.NO_DRIVER
        current = self._neighbours.get(neighbour.peer_id) is neighbour
        known = isinstance(error, SessionError | UnknownProtocol)
        self._drop(neighbour, reason, error if known else DriverClosed("the peer's driver was closed"))
        if current and isinstance(error, UnknownProtocol) and neighbour.is_hasty and neighbour.greeting is not None:
            # Our lanes came before the peer's driver, and its greeting has overtaken their refusal.
            again = self._begin(neighbour.session)
            again.greeted_by = neighbour.greeted_by
            self._up(again, neighbour.greeting)

    def _greeted(self, stream: Stream, greeting: wire.Greeting) -> None:
        """A driver of the peer's is there."""
        session = stream.session
        if session.state == "closed" or not self._open:
            # A lane that had to wait until others were fetched: its frames can still be had, and that is all.
            return
        neighbour = self._neighbours.get(session.peer_id)
        if neighbour is not None and (neighbour.greeting == greeting or stream.id < neighbour.greeted_by):
            return
        if neighbour is not None and neighbour.greeting is not None:
            self._drop(neighbour, Reason.NO_DRIVER, DriverClosed("the peer's driver was followed by another"))
            neighbour = None
        if neighbour is None:
            neighbour = self._begin(session)
        neighbour.greeted_by = stream.id
        self._up(neighbour, greeting)

    def _up(self, neighbour: Neighbour, greeting: wire.Greeting) -> None:
        neighbour.greeted(greeting)
        path = neighbour.session.received_on
        self._publish(NeighbourUp(neighbour.peer_id, None if path is None else path.direction))

    def _arrived(self, session: Session, size: int) -> None:
        neighbour = self._neighbours.get(session.peer_id)
        if neighbour is not None:
            neighbour.goodput_in.add(size, clock())

    def _misbehaved(self, session: Session, how: str) -> None:
        logger.warning("%s is disconnected: it sent %s", session.peer_id, how)
        # Not at once: this may be in the middle of receiving from it.
        asyncio.get_running_loop().call_soon(partial(session.close, code=CloseCode.MISBEHAVED, reason=how))

    def _drop(self, neighbour: Neighbour, reason: Reason, error: Exception) -> None:
        """A neighbour has ended: its frames come back, and whoever listens is told."""
        if self._neighbours.get(neighbour.peer_id) is not neighbour:
            return
        del self._neighbours[neighbour.peer_id]
        neighbour.end(reason)
        if neighbour.task is not None and neighbour.task is not asyncio.current_task():
            neighbour.task.cancel()
        if neighbour.greeting is not None:
            self._publish(NeighbourDown(neighbour.peer_id, error))

    def _refuse(self, neighbour: Neighbour, frame: bytes, reason: Reason) -> None:
        self._returned(neighbour, [Returned(frame, reason, maybe_delivered=False)])

    def _returned(self, neighbour: Neighbour, frames: list[Returned]) -> None:
        neighbour.returned += len(frames)
        for one in frames:
            self._returns.add(Undelivered(one.frame, neighbour.peer_id, one.reason, one.maybe_delivered))

    def _publish(self, event: DriverEvent) -> None:
        for events in self._listeners:
            events.put(event)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        task = self._endpoint.spawn(work, name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
