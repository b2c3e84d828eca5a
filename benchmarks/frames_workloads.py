"""What is measured of frames: one side sends them, the other looks at each and notes when it came.

A frame says which measurement it belongs to, which number it has there, and when it was handed over; the rest is the
pattern of `workloads.py`. So each is counted once, whatever belongs to an earlier measurement is told apart, and what
is missing is told. All processes are on one machine and share its monotonic clock: a rate is counted from the moment
the first frame is handed over to the one in which the last is handed out, and a delay between those two of one frame.
"""

import asyncio
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

from workloads import WrongDataError, check, expected

HEAD: Final = struct.Struct("!IQd")
"""Measurement, number within it, and the clock when it was handed over."""
LOAD: Final = 0
"""The measurement that frames belong to which only keep a link busy."""
INTERVAL: Final = 0.002
"""Seconds between frames that are sent one by one."""
QUIET: Final = 0.5
"""Seconds without a frame after which no more are expected of those that may be lost."""
STUCK: Final = 20.0
"""The same of those that may not: then it has failed."""

Report = dict[str, Any]


class Sender(Protocol):
    """The sending end: of one link, or of several."""

    async def send(self, frame: bytes, *, reliable: bool = True, control: bool = False) -> None:
        """Hand a frame over to the only neighbour; waits while that one, or the network, is behind."""

    async def flood(self, frame: bytes) -> None:
        """Hand it over to all of them; waits while most are behind."""

    async def flush(self) -> None:
        """Let it leave, if that is left to the user."""


Load = Callable[[asyncio.Event, asyncio.Event], Awaitable[float]]
"""Keeps a link busy: sets the first event when it does, stops at the second; its megabytes per second."""


def frame(run: int, number: int, size: int) -> bytes:
    """The frame of that number."""
    return HEAD.pack(run, number, time.monotonic()) + expected(number * size, size - HEAD.size)


@dataclass(frozen=True, slots=True)
class Arrived:
    """What one receiver has got of a measurement."""

    received: int
    last: float
    """The clock at the last frame."""
    median: float
    """The delay that half of them kept below, in microseconds."""
    tail: float
    """The same for 99 of 100."""


class Collector:
    """What arrives at one receiver."""

    def __init__(self) -> None:
        self._run = LOAD
        self._size = 0
        self._seen = bytearray()
        self._delays: list[float] = []
        self._last = 0.0
        self._error: WrongDataError | None = None

    def expect(self, run: int, count: int, size: int) -> None:
        """From now on these frames count."""
        self._run, self._size = run, size
        self._seen = bytearray(count)
        self._delays = []

    def take(self, data: bytes) -> None:
        """Look at a frame. What is wrong with it, `report` raises: who hands it out is not to be disturbed."""
        run, number, handed_over = HEAD.unpack_from(data)
        try:
            check(data[HEAD.size :], number * len(data))
            if run == self._run != LOAD:
                self._count(number, len(data))
                self._last = time.monotonic()
                self._delays.append(self._last - handed_over)
        except WrongDataError as error:
            self._error = error

    def _count(self, number: int, size: int) -> None:
        if size != self._size or number >= len(self._seen):
            raise WrongDataError(f"frame {number} of {size} bytes was not sent")
        if self._seen[number]:
            raise WrongDataError(f"frame {number} came twice")
        self._seen[number] = 1

    async def report(self, *, may_lose: bool) -> Report:
        """What has arrived, once it is all or nothing more comes.

        Raises:
            WrongDataError: a frame was not what was sent, came twice, or is missing.
        """
        count = len(self._seen)
        before, since = -1, 0.0
        # It costs the receiver less to be looked at now and then than to wake somebody with each frame.
        while self._error is None and len(self._delays) < count:
            if len(self._delays) != before:
                before, since = len(self._delays), time.monotonic()
            elif time.monotonic() - since > (QUIET if may_lose else STUCK):
                break
            await asyncio.sleep(INTERVAL)
        if self._error is not None:
            raise self._error
        received = len(self._delays)
        if not received or (received < count and not may_lose):
            raise WrongDataError(f"{received} of {count} frames arrived")
        delays = sorted(self._delays)
        tail = delays[min(received - 1, received * 99 // 100)]
        return asdict(Arrived(received, self._last, delays[received // 2] * 1e6, tail * 1e6))


async def saturate(sender: Sender, run: int, count: int, size: int, *, reliable: bool = True) -> Report:
    """As many frames as the link takes."""
    began = time.monotonic()
    for number in range(count):
        await sender.send(frame(run, number, size), reliable=reliable)
    await sender.flush()
    return {"began": began}


async def probe(
    sender: Sender, run: int, count: int, size: int, *, reliable: bool = True, control: bool = False
) -> Report:
    """Single frames at a moderate rate."""
    began = time.monotonic()
    for number in range(count):
        await asyncio.sleep(INTERVAL)
        await sender.send(frame(run, number, size), reliable=reliable, control=control)
        await sender.flush()
    return {"began": began}


async def flood(sender: Sender, run: int, count: int, size: int) -> Report:
    """As many frames to all neighbours as they take."""
    began = time.monotonic()
    for number in range(count):
        await sender.flood(frame(run, number, size))
    await sender.flush()
    return {"began": began}


async def beside(sender: Sender, run: int, count: int, size: int, load: Load | None) -> Report:
    """A router's own frames, while the same link is kept busy, or idle."""
    if load is None:
        return await probe(sender, run, count, size, control=True)
    busy, stop = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        loading = group.create_task(_rate(load, busy, stop))
        await busy.wait()
        report = await probe(sender, run, count, size, control=True)
        stop.set()
    return report | {"load": loading.result()}


async def _rate(load: Load, busy: asyncio.Event, stop: asyncio.Event) -> float:
    return await load(busy, stop)
