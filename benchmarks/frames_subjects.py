"""Who carries the frames: our driver over one transport, or a rival."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final, Protocol

import workloads
from frames_rivals import AioquicDatagrams, PlainUdp, Take
from frames_workloads import HEAD, LOAD, Load, Sender, frame
from subjects import HOST, PROTOCOL

from overlay import FLOOD, Config, Driver, Endpoint, Identity, NeighbourUp, PeerId, Priority, Reason, Ticket

BULK_FRAME: Final = 32 * 1024
"""Bytes of the frames that keep a link busy."""
BUSY: Final = 8 * 1024 * 1024
"""Bytes after which whoever sends without a pause has waited for the peer: more than our buffers take at once."""
ENDLESS: Final = 2**62
"""Bytes of a stream that ends when it is told to."""


class Subject(Protocol):
    """What is measured."""

    def receiver(self, take: Take) -> AbstractAsyncContextManager[str]:
        """Take frames from whoever sends them; yields the address."""

    def sender(self, addresses: list[str]) -> AbstractAsyncContextManager[Sender]:
        """A node that has all of these as its neighbours."""


class Overlay:
    """Ours.

    Args:
        transport: its name.
    """

    def __init__(self, transport: str) -> None:
        # Packets as on Ethernet: loopback would carry 64 KB, and no other link does.
        self._config = Config(
            listen=(f"{HOST}:0",), transports=(transport,), largest_datagram=1400, dials_per_second=1000.0
        )

    @asynccontextmanager
    async def receiver(self, take: Take) -> AsyncIterator[str]:
        """Take frames, and streams as `workloads.serve` does; yields the ticket."""

        async def take_all(driver: Driver) -> None:
            async for received in driver:
                take(received.frame)

        async with Endpoint(Identity.generate(), self._config) as endpoint, Driver(endpoint) as driver:
            endpoint.handle(PROTOCOL, workloads.serve)
            taking = asyncio.create_task(take_all(driver))
            try:
                yield str(endpoint.ticket)
            finally:
                taking.cancel()

    @asynccontextmanager
    async def sender(self, addresses: list[str]) -> AsyncIterator["OverlaySender"]:
        """Send them."""
        async with Endpoint(Identity.generate(), self._config) as endpoint, Driver(endpoint) as driver:
            events = driver.events()
            peers = [driver.start_peering(Ticket.parse(address)) for address in addresses]
            missing = set(peers)
            async for event in events:
                if isinstance(event, NeighbourUp):
                    missing.discard(event.peer_id)
                if not missing:
                    break
            sender = OverlaySender(endpoint, driver, peers)
            accounting = asyncio.create_task(sender.account())
            try:
                yield sender
            finally:
                accounting.cancel()


class OverlaySender:
    """The sending driver, and the account of what comes back."""

    LOOK: Final = 32
    """Frames of a flood after which it looks how far the neighbours are."""
    ROOM: Final = 96
    """Frames that may wait for a neighbour then: with the next ones they leave within a second at 128 per second, so
    that the age limit is not over for those who only are slow."""
    POLL: Final = 0.0005

    def __init__(self, endpoint: Endpoint, driver: Driver, peers: list[PeerId]) -> None:
        self._endpoint = endpoint
        self._driver = driver
        self._peers = peers
        self._waited_for = set(peers[:-1] or peers)
        """By a flood."""
        self._flooded = 0
        self._reasons: Counter[str] = Counter()
        self._ages: list[float] = []
        self.age_limit: float | None = None
        """Seconds, of the frames of a flood; None: the driver's own."""

    async def send(self, frame: bytes, *, reliable: bool = True, control: bool = False) -> None:
        """Wait for room."""
        priority = Priority.CONTROL if control else Priority.BULK
        await self._driver.send(frame, self._peers[0], priority=priority, reliable=reliable, wait=True)

    async def flood(self, frame: bytes) -> None:
        """Wait until all but the last neighbour have room: that one may be stopped.

        It is never waited for, so that a flood without it waits for the same ones: the slowest among them is its limit.
        """
        await self._driver.send(frame, FLOOD, deadline=self.age_limit)
        self._flooded += 1
        if self._flooded % self.LOOK:
            return
        while self._longest_queue() > self.ROOM:  # noqa: ASYNC110 - a flood waits for nobody, and so nobody tells
            await asyncio.sleep(self.POLL)

    def _longest_queue(self) -> int:
        return max(one.queued_frames for one in self._driver.status().neighbours if one.peer_id in self._waited_for)

    async def _delivered(self) -> None:
        """Wait until nothing waits or is under way, for a neighbour without a path too, unlike `Driver.flush`."""
        while any(  # noqa: ASYNC110 - nobody tells that it is over, least of all a neighbour that has stopped
            one.queued_frames or one.unacknowledged_size for one in self._driver.status().neighbours
        ):
            await asyncio.sleep(self.POLL)

    async def flush(self) -> None:
        """All that was sent in one turn of the loop leaves at its end."""

    async def account(self) -> None:
        """Note what comes back, why, and how old it is."""
        async for lost in self._driver.undelivered():
            _, _, handed_over = HEAD.unpack_from(lost.frame)
            self._reasons[lost.reason] += 1
            if lost.reason is Reason.EXPIRED:
                self._ages.append(time.monotonic() - handed_over)

    async def settle(self) -> dict[str, Any]:
        """Wait until nothing waits or is under way; how much has come back since the last time, by reason.

        `age`: the seconds after which half of those had come back whose age limit was over.
        """
        await self._delivered()
        while self._driver.status().undelivered_waiting:  # noqa: ASYNC110 - whoever fetches them tells nobody
            await asyncio.sleep(self.POLL)
        result = {
            "returned": dict(self._reasons),
            "age": median(self._ages) if self._ages else None,
            "dropped": self._driver.status().undelivered_dropped,
        }
        self._reasons.clear()
        self._ages.clear()
        return result

    def load(self, kind: str) -> Load | None:
        """What keeps the only link busy: `stream`, `frames`, or nothing."""
        return {"stream": self._stream, "frames": self._frames}.get(kind)

    async def _stream(self, busy: asyncio.Event, stop: asyncio.Event) -> float:
        session = await self._endpoint.connect(self._peers[0])
        stream = await session.open_stream(PROTOCOL)
        await stream.write(workloads.REQUEST.pack(b"S", ENDLESS))
        offset = 0
        while not stop.is_set():
            await stream.write(workloads.expected(offset, workloads.WRITE))
            offset += workloads.WRITE
            if offset >= BUSY:
                busy.set()
        await stream.write_eof()
        received, seconds = workloads.REPORT.unpack(await stream.readexactly(workloads.REPORT.size))
        if received != offset:
            raise workloads.WrongDataError(f"{received} of {offset} bytes arrived")
        return float(received / seconds) / 1e6

    async def _frames(self, busy: asyncio.Event, stop: asyncio.Event) -> float:
        began = time.monotonic()
        number = 0
        while not stop.is_set():
            await self.send(frame(LOAD, number, BULK_FRAME))
            number += 1
            if number * BULK_FRAME >= BUSY:
                busy.set()
        await self._delivered()
        if self._reasons:
            raise workloads.WrongDataError(f"frames to a living neighbour came back: {dict(self._reasons)}")
        return number * BULK_FRAME / (time.monotonic() - began) / 1e6


def subject(name: str, keys: Path) -> Subject:
    """The subject of that name: `sockets`, `aioquic`, or one of our transports."""
    if name == "sockets":
        return PlainUdp()
    if name == "aioquic":
        return AioquicDatagrams(keys)
    return Overlay(name)
