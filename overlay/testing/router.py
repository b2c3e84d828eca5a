"""A small router over a `Driver`: messages to any key of a mesh, and to everybody, over as many links as it takes.

    async with Endpoint(identity) as endpoint, Driver(endpoint) as driver, MeshRouter(driver) as router:
        driver.start_peering(ticket)
        await router.broadcast(b"hello")
        message = await router.next()

It is for tests, and to learn from: what a router has to do with what a driver offers. What is decided is decided in
`router_core.py`, which knows no network; here is what connects the two. Four tasks bring the core what happens: frames
that arrive, neighbours that come and go, frames that come back, and time. Each then does what the core asks for.

To try it, `python -m overlay.testing.router`, see `router_chat.py`.
"""

import asyncio
import secrets
import time
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from overlay.errors import ConfigError, DriverClosed, FrameTooLong, NotANeighbour
from overlay.events import DriverEvent, Events, NeighbourDown, NeighbourUp
from overlay.identity import PeerId
from overlay.protocol.driver.outbox import Reason
from overlay.protocol.stream import Priority
from overlay.router import FLOOD, Driver
from overlay.testing.router_core import Message, RouterCore, Send
from overlay.testing.router_wire import OVERHEAD

clock = time.monotonic

UNREAD_MESSAGES: Final = 256
"""How many wait for `next`; with more, no frames are fetched from the driver, which makes the neighbours wait."""


class MeshRouter:
    """One node of a mesh of nodes that all run this.

    Used as `async with MeshRouter(driver) as router:`. Leaving stops it; what waits for a route is lost with it.

    Whoever enters it has to call `next` again and again: a node whose user does not read takes part no longer.

    Args:
        driver: open, for as long as the router is; its frames are the router's.
        announce: seconds between two announcements of ourselves, the same at all nodes of a mesh. A route that is cut
            is replaced after one of them at most, if the driver reports the link's end, and after four if it does not.

    Raises:
        ConfigError: `announce` is not above 0.
    """

    def __init__(self, driver: Driver, *, announce: float = 1.0) -> None:
        if announce <= 0:
            raise ConfigError(f"announce must be above 0, not {announce}")
        self._driver = driver
        # The wall clock numbers announcements, so that those after a restart are newer.
        self._core = RouterCore(
            driver.peer_id,
            period=announce,
            sequence=time.time_ns() // 1000,
            number=secrets.randbits(64),
            now=clock(),
        )
        self._messages: deque[Message] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._earlier = asyncio.Event()
        """The core wants to be woken up earlier than it has said before."""
        self._due = 0.0
        self._work: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        # From before the look at who is there, so that nobody is missed.
        events = self._driver.events()
        for neighbour in self._driver.neighbours():
            self._core.neighbour_up(neighbour, clock())
        self._work = asyncio.create_task(self._run(events), name="mesh router")
        self._work.add_done_callback(lambda _: self._news.set())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._work is not None  # noqa: S101 - entered
        self._work.cancel()
        await asyncio.wait([self._work])
        if not self._work.cancelled() and (failure := self._work.exception()) is not None:
            raise failure

    # ---------------------------------------------------------------- for users

    async def send(self, payload: bytes, destination: PeerId) -> None:
        """Send to one key, now or as soon as there is a route to it. Our own key is reached, too.

        It waits for room in the queue of the next hop. Cancellation meanwhile: it is not sent.

        Raises:
            FrameTooLong: `limit` is what a payload may have; nothing was sent.
            DriverClosed: the driver or this router is closed.
        """
        self._check(payload)
        self._core.send(payload, destination, clock())
        await self._carry_out(wait=True)

    async def broadcast(self, payload: bytes) -> None:
        """Send to everybody in the mesh but ourselves, those included who come within the next minute.

        It waits for nobody: what is too much for a link waits in a store, where the oldest goes when that is full.

        Raises:
            FrameTooLong, DriverClosed: as for `send`.
        """
        self._check(payload)
        self._core.send(payload, None, clock())
        await self._carry_out()

    async def next(self) -> Message:
        """The next message for us. Cancellation-safe.

        Raises:
            DriverClosed: the driver or this router is closed, and all that had come before was fetched.
        """
        while not self._messages:
            self._check_open()
            self._news.clear()
            await self._news.wait()
        self._room.set()
        return self._messages.popleft()

    def routes(self) -> dict[PeerId, tuple[PeerId, int]]:
        """Who can be reached: over which neighbour, and how many links away."""
        return self._core.table.routes()

    @property
    def waiting(self) -> int:
        """Packets that wait for a route, or for a neighbour that does not take them now."""
        return self._core.waiting

    @property
    def dropped(self) -> int:
        """Packets that this node has given up: too old, too many, too far, too long."""
        return self._core.dropped

    @property
    def duplicates(self) -> int:
        """Packets that came again, and went no farther."""
        return self._core.duplicates

    @property
    def garbage(self) -> int:
        """Frames of neighbours that were none of a router like this."""
        return self._core.garbage

    def _check(self, payload: bytes) -> None:
        self._check_open()
        limit = self._driver.max_frame_size - OVERHEAD
        if len(payload) > limit:
            raise FrameTooLong(payload, limit)

    def _check_open(self) -> None:
        if self._work is None or self._work.done():
            raise DriverClosed("the router is not running")

    # ---------------------------------------------------------------- what happens

    async def _run(self, events: Events[DriverEvent]) -> None:
        async with asyncio.TaskGroup() as group:
            others = [group.create_task(one) for one in (self._follow(events), self._take_back(), self._keep_time())]
            # It ends with the driver, and the others with it.
            await self._receive()
            for one in others:
                one.cancel()

    async def _receive(self) -> None:
        with suppress(DriverClosed):
            while True:
                while len(self._messages) >= UNREAD_MESSAGES:
                    self._room.clear()
                    await self._room.wait()
                received = await self._driver.next()
                self._core.received(received.frame, received.peer_id, clock())
                await self._carry_out()

    async def _follow(self, events: Events[DriverEvent]) -> None:
        with suppress(DriverClosed):
            async for event in events:
                match event:
                    case NeighbourUp(peer_id):
                        self._core.neighbour_up(peer_id, clock())
                    case NeighbourDown(peer_id):
                        self._core.neighbour_down(peer_id, clock())
                    case _:
                        continue
                await self._carry_out()

    async def _take_back(self) -> None:
        async for lost in self._driver.undelivered():
            self._core.returned(lost.frame, lost.peer_id, clock(), hopeless=lost.reason is Reason.TOO_LONG)

    async def _keep_time(self) -> None:
        with suppress(DriverClosed):
            while True:
                self._core.handle_timeout(clock())
                await self._carry_out()
                self._due = self._core.next_timeout()
                self._earlier.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._due - clock()):
                        await self._earlier.wait()

    # ---------------------------------------------------------------- what is to be done

    async def _carry_out(self, *, wait: bool = False) -> None:
        for action in self._core.take_actions():
            if isinstance(action, Message):
                self._messages.append(action)
                self._news.set()
            else:
                await self._send(action, wait=wait)
        if self._core.next_timeout() < self._due:
            self._earlier.set()

    async def _send(self, action: Send, *, wait: bool) -> None:
        neighbour = action.neighbour
        try:
            await self._driver.send(
                action.frame,
                FLOOD if neighbour is None else neighbour,
                exclude=action.exclude,
                priority=Priority.CONTROL if action.routing else Priority.BULK,
                deadline=action.patience,
                wait=wait and neighbour is not None,
            )
        except (NotANeighbour, FrameTooLong) as error:
            # A flood goes to whoever is there, and its length was checked, or it could not have come.
            if neighbour is None:
                raise
            self._core.returned(action.frame, neighbour, clock(), hopeless=isinstance(error, FrameTooLong))


if __name__ == "__main__":
    from overlay.testing.router_chat import main

    raise SystemExit(main())
