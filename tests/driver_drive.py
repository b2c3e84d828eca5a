"""Four drivers, whoever sends between them, and all that befalls them; the books say what came of each frame."""

import asyncio
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from overlay import (
    Config,
    Driver,
    DriverClosed,
    Endpoint,
    Identity,
    NeighbourDown,
    NeighbourUp,
    NotANeighbour,
    PeerId,
    Priority,
    Undelivered,
)
from overlay.events import DriverEvent, Events
from overlay.testing import LOOPBACK, KiB, Weather, crash, ticket, until

BURSTS = 120
FRAMES = 10
"""At most, in each burst."""
MISHAPS = 16
LINKS = ("quic", "udp", "tcp", "tcp", "udp", "quic")
"""Of each pair of stations, in their order."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A frame that was given to `Driver.send`."""

    target: PeerId
    reliable: bool
    drivers: int
    """Which one of the target's it was for."""


@dataclass
class Books:
    """What became of each frame, by its number."""

    sent: dict[int, Sent] = field(default_factory=dict)
    received: Counter[int] = field(default_factory=Counter)
    drivers: Counter[PeerId] = field(default_factory=Counter)
    """How many each station has had."""
    refused: set[int] = field(default_factory=set)
    """`send` has raised."""
    returned: defaultdict[int, list[Undelivered]] = field(default_factory=lambda: defaultdict(list))

    def check(self) -> None:
        """Each frame has arrived once, or came back once, and what is said of it is true."""
        assert set(self.received) | set(self.returned) | self.refused <= set(self.sent)
        for number, sent in self.sent.items():
            arrivals, returns = self.received[number], self.returned[number]
            story = f"{number} {sent}: received {arrivals} times, refused: {number in self.refused}, returned: " + str(
                [(lost.reason.name, lost.maybe_delivered) for lost in returns]
            )
            assert arrivals <= 1, story
            assert len(returns) + (number in self.refused) <= 1, story
            # Who ends may take with it what it has acknowledged.
            if sent.reliable and self.drivers[sent.target] == sent.drivers:
                assert arrivals or returns or number in self.refused, story
            if arrivals:
                assert number not in self.refused, story
                assert all(lost.maybe_delivered for lost in returns), story


class Station:
    """A key, and one after the other its endpoints and drivers."""

    def __init__(self, books: Books, config: Config) -> None:
        self.identity = Identity.generate()
        self.driver: Driver | None = None
        self.endpoint = Endpoint(self.identity, config)
        self.weather = Weather()
        self._books = books
        self._config = config
        self._tasks: list[asyncio.Task[None]] = []
        self._closed: list[Driver] = []
        """Held as users may hold them: they must not disturb those that follow."""

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    async def begin(self) -> None:
        self.endpoint = Endpoint(self.identity, self._config)
        await self.endpoint.__aenter__()
        self.weather = Weather(self.endpoint)
        await self.open_driver()

    async def open_driver(self) -> None:
        self.driver = driver = Driver(self.endpoint, queue_frames=64, queue_size=256 * KiB, age_limit=2.0)
        await driver.__aenter__()
        self._books.drivers[self.peer_id] += 1
        work = (self._receive(driver), self._take_back(driver), self._watch(driver.events()))
        self._tasks = [asyncio.create_task(one) for one in work]

    async def close_driver(self, *, gracefully: bool) -> None:
        driver = self._leave()
        await (driver.__aexit__(None, None, None) if gracefully else driver.aclose())
        await self._ended(driver)

    async def end(self, how: str) -> None:
        if how == "crash":
            driver = self._leave()
            await crash(self.endpoint)
            await self._ended(driver)
        elif how == "endpoint":
            driver = self._leave()
            await self.endpoint.aclose()
            await self._ended(driver)
        else:
            await self.close_driver(gracefully=how == "gracefully")
            await self.endpoint.aclose()

    def _leave(self) -> Driver:
        driver, self.driver = self.driver, None
        assert driver is not None
        self._closed.append(driver)
        return driver

    async def _ended(self, driver: Driver) -> None:
        """Who receives, takes back or watches is told of the end, and nothing is left over."""
        async with asyncio.timeout(20):
            await asyncio.gather(*self._tasks)
        assert not (driver._neighbours or driver._tasks or driver._receiver._tasks)

    async def _receive(self, driver: Driver) -> None:
        async for received in driver:
            number = int.from_bytes(received.frame[:4])
            assert self._books.sent[number].target == self.peer_id
            self._books.received[number] += 1
            if number % 40 == 0:
                await asyncio.sleep(0.01)

    async def _take_back(self, driver: Driver) -> None:
        async for lost in driver.undelivered():
            number = int.from_bytes(lost.frame[:4])
            assert self._books.sent[number].target == lost.peer_id
            self._books.returned[number].append(lost)

    async def _watch(self, events: Events[DriverEvent]) -> None:
        """Of each neighbour, ups and downs alternate, and the last one is a down."""
        there: set[PeerId] = set()
        async for event in events:
            if isinstance(event, NeighbourUp):
                assert event.peer_id not in there
                there.add(event.peer_id)
            elif isinstance(event, NeighbourDown):
                there.remove(event.peer_id)
        assert not there


class Drive:
    """Everything that happens to the stations is drawn from `seed`; only how it interleaves is up to the machine."""

    def __init__(self, seed: int) -> None:
        self.books = Books()
        self._draw = random.Random(seed)
        config = Config(
            listen=LOOPBACK,
            resume_timeout=self._draw.choice((0.3, 2.0, 60.0)),
            keepalive=0.3,
            idle_timeout=1.0,
            backoff_cap=0.3,
            dials_per_second=1000.0,
        )
        self.stations = [Station(self.books, config) for _ in range(4)]
        self._numbers = iter(range(2**32))

    async def run(self) -> None:
        for station in self.stations:
            await station.begin()
        self._peer_all()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._disturb())
            for station in self.stations:
                group.create_task(self._send(station, random.Random(self._draw.random())))
        self._peer_all()
        others = len(self.stations) - 1
        await until(
            lambda: all(one.driver is not None and len(one.driver.neighbours()) == others for one in self.stations)
        )
        await asyncio.gather(*(station.close_driver(gracefully=True) for station in self.stations))
        await asyncio.gather(*(station.endpoint.aclose() for station in self.stations))

    def _peer_all(self) -> None:
        pairs = [(one, two) for number, one in enumerate(self.stations) for two in self.stations[number + 1 :]]
        for (one, two), transport in zip(pairs, LINKS, strict=True):
            for source, target in ((one, two), (two, one)):
                assert source.driver is not None
                source.driver.start_peering(ticket(target.endpoint, transport))

    async def _send(self, source: Station, draw: random.Random) -> None:
        others = [station for station in self.stations if station is not source]
        for _ in range(BURSTS):
            for _ in range(draw.randint(1, FRAMES)):
                target, priority, reliable = draw.choice(others), draw.choice(list(Priority)), draw.random() < 0.7
                size = draw.choice((4, draw.randint(4, 200), draw.randint(4, 2000), draw.randint(4, 64 * KiB)))
                deadline, wait = draw.choice((None, None, 0.05, 1.0)), draw.random() < 0.3
                patience = draw.choice((0, 1, 5)) if draw.random() < 0.2 else None
                if source.driver is None:
                    continue
                number = next(self._numbers)
                self.books.sent[number] = Sent(target.peer_id, reliable, self.books.drivers[target.peer_id])
                frame = number.to_bytes(4) + bytes(size - 4)
                sending = asyncio.create_task(
                    source.driver.send(
                        frame, target.peer_id, priority=priority, reliable=reliable, deadline=deadline, wait=wait
                    )
                )
                if patience is not None:
                    for _ in range(patience):
                        await asyncio.sleep(0)
                    sending.cancel()
                    await asyncio.wait([sending])
                try:
                    await sending
                except (NotANeighbour, DriverClosed):
                    self.books.refused.add(number)
                except asyncio.CancelledError:
                    if not sending.cancelled() or patience is None:
                        raise
                    self.books.refused.add(number)
            await asyncio.sleep(draw.choice((0, 0.01, 0.05)))

    async def _disturb(self) -> None:
        draw = self._draw
        for _ in range(MISHAPS):
            station, other = draw.sample(self.stations, 2)
            mishap = draw.choice((self._cut, self._block, self._stop, self._reopen, self._restart))
            await asyncio.sleep(draw.uniform(0, 0.2))
            await mishap(station, other)

    async def _cut(self, station: Station, other: Station) -> None:
        station.weather.cut()
        await asyncio.sleep(self._draw.choice((0, 0.05, 0.6)))
        station.weather.cut_off = False

    async def _block(self, station: Station, other: Station) -> None:
        station.weather.udp_blocked = True
        await asyncio.sleep(self._draw.uniform(0, 0.5))
        station.weather.udp_blocked = False

    async def _stop(self, station: Station, other: Station) -> None:
        assert station.driver is not None
        station.driver.stop_peering(other.peer_id)
        await asyncio.sleep(self._draw.choice((0, 0.1)))
        station.driver.start_peering(ticket(other.endpoint))

    async def _reopen(self, station: Station, other: Station) -> None:
        await station.close_driver(gracefully=self._draw.random() < 0.5)
        await asyncio.sleep(self._draw.choice((0, 0.1)))
        await station.open_driver()

    async def _restart(self, station: Station, other: Station) -> None:
        await station.end(self._draw.choice(("crash", "endpoint", "gracefully", "at once")))
        await asyncio.sleep(self._draw.uniform(0, 0.2))
        await station.begin()
        self._peer_all()
