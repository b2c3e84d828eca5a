"""Endpoints with drivers, for tests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from overlay import (
    Config,
    Driver,
    Endpoint,
    Identity,
    NeighbourDown,
    NeighbourUp,
    PeerId,
    Priority,
    Received,
    Session,
    Stream,
    Undelivered,
)
from overlay.events import DriverEvent, Events
from overlay.protocol.driver import wire
from overlay.testing import LOOPBACK, KiB, ticket, until

SOCKETS = Config(listen=LOOPBACK)
TCP = Config(listen=LOOPBACK, transports=("tcp",))


class Node:
    """An endpoint and its driver."""

    def __init__(self, endpoint: Endpoint, driver: Driver) -> None:
        self.endpoint = endpoint
        self.driver = driver

    @property
    def peer_id(self) -> PeerId:
        return self.endpoint.peer_id

    async def take(self, count: int) -> list[Received]:
        """So many frames."""
        return [await self.driver.next() for _ in range(count)]

    async def frames(self, count: int) -> list[bytes]:
        """The contents of so many frames."""
        return [received.frame for received in await self.take(count)]

    async def lost(self, count: int) -> list[Undelivered]:
        """So many that came back."""
        returns = self.driver.undelivered()
        return [await anext(returns) for _ in range(count)]

    def is_neighbour(self, other: "Node") -> bool:
        return other.peer_id in self.driver.neighbours()


@asynccontextmanager
async def node(config: Config = SOCKETS, **settings: Any) -> AsyncIterator[Node]:
    """One node that listens on loopback."""
    async with (
        Endpoint(Identity.generate(), config) as endpoint,
        Driver(endpoint, **settings) as driver,
        asyncio.timeout(60),
    ):
        yield Node(endpoint, driver)


async def peer(one: Node, other: Node, transport: str | None = None) -> None:
    """Make them neighbours of each other."""
    one.driver.start_peering(ticket(other.endpoint, transport))
    await until(lambda: one.is_neighbour(other) and other.is_neighbour(one))


@asynccontextmanager
async def star(leaves: int, config: Config = SOCKETS, **settings: Any) -> AsyncIterator[tuple[Node, list[Node]]]:
    """A node in the middle, which has the settings, and its neighbours."""
    async with AsyncExitStack() as stack:
        middle = await stack.enter_async_context(node(config, **settings))
        nodes = [await stack.enter_async_context(node(config)) for _ in range(leaves)]
        for leaf in nodes:
            await peer(middle, leaf)
        yield middle, nodes


@asynccontextmanager
async def two(config: Config = SOCKETS, **settings: Any) -> AsyncIterator[tuple[Node, Node]]:
    """Two neighbours; the first one, which has dialled, has the settings."""
    async with star(1, config, **settings) as (middle, leaves):
        yield middle, leaves[0]


def told(events: Events[DriverEvent]) -> list[type[NeighbourUp | NeighbourDown]]:
    """Who came and went since the last call."""
    happened = [events._queue.get_nowait() for _ in range(events._queue.qsize())]
    return [type(event) for event in happened if isinstance(event, NeighbourUp | NeighbourDown)]


@asynccontextmanager
async def rogue(target: Node, identity: Identity | None = None) -> AsyncIterator[Session]:
    """A session of somebody who reads a node's lanes, and writes by hand what a driver never would; see `lane`."""

    async def read(stream: Stream) -> None:
        async for _ in stream:
            pass

    async with Endpoint(identity or Identity.generate(), target.endpoint.config) as endpoint:
        endpoint.handle(wire.PROTOCOL, read)
        yield await endpoint.connect(ticket(target.endpoint))


async def lane(session: Session, instance: int = 1) -> Stream:
    """A lane that greets as a driver with that instance would."""
    stream = await session.open_stream(wire.PROTOCOL, priority=Priority.BULK)
    await stream.write(wire.Greeting(64 * KiB, instance).encode())
    return stream


def unread(one: Node, stream: Stream) -> int:
    """Bytes of a stream that have arrived at a node with only one session, and are not read."""
    [session] = one.endpoint.sessions.values()
    return len(session._core.core.streams[stream.id].receiving.buffer)
