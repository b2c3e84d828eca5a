"""What is measured: one side of each measurement runs at the server, the other at the dialler.

Everything runs over a `Channel`, which our `Stream` is as it stands, so ours and the rivals do exactly the same work.
The clock of goodput and messages is the receiver's: a sender that has handed its bytes to a buffer has shown nothing.

Every byte is checked where it arrives, against a block that repeats. The block's length is a prime, so bytes that are
moved by any power of two, the mistake that buffers make, do not match. `bytes.startswith` compares in place, by memcmp:
a tenth of the cost of CRC-32 and a hundredth of comparing memory views, which Python does byte by byte.
"""

import random
import struct
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

BLOCK: Final = 1_048_573
"""Bytes after which the pattern repeats: the largest prime below 1 MiB."""
WRITE: Final = 64 * 1024
READ: Final = 256 * 1024
MESSAGE: Final = 1024
ECHO: Final = 64
_ONCE = random.Random(9330).randbytes(BLOCK)
PATTERN: Final = _ONCE + _ONCE[: 2 * READ]

REQUEST: Final = struct.Struct("!cQ")
"""What to do, and with how many bytes or messages."""
REPORT: Final = struct.Struct("!Qd")
"""Bytes that were received and found right, and the seconds that it took."""


class Channel(Protocol):
    """A stream as asyncio has it."""

    async def write(self, data: bytes, /) -> None:
        """Hand over, and wait while the other side is behind."""

    async def write_eof(self) -> None:
        """Say that no more comes."""

    async def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; b"" at the end."""

    async def readexactly(self, size: int, /) -> bytes:
        """Exactly `size` bytes."""


Serve = Callable[[Channel], Awaitable[None]]


class Dialler(Protocol):
    """One node that is about to connect. Everything that it needs has been made before."""

    async def connect(self, *, early: bool = False) -> None:
        """Connect; with `early` return as soon as bytes can be sent safely."""

    async def open(self) -> Channel:
        """Open a channel."""


class Subject(Protocol):
    """What is measured: ours, or a rival."""

    def serve(self, serve: Serve) -> AbstractAsyncContextManager[str]:
        """Accept connections and run `serve` on each channel; yields the address."""

    def dialler(self, address: str) -> AbstractAsyncContextManager[Dialler]:
        """A new node, which shares nothing with earlier ones."""

    def port(self, address: str) -> int:
        """The port in an address."""

    def through(self, address: str, port: int) -> str:
        """The address with another port: that of a relay."""


class WrongDataError(Exception):
    """What arrived is not what was sent."""


def expected(offset: int, size: int) -> bytes:
    """`size` bytes of the pattern, at most `READ` of them."""
    start = offset % BLOCK
    return PATTERN[start : start + size]


def check(data: bytes, offset: int) -> None:
    """Raise `WrongDataError` unless `data`, at most `READ` bytes, is the pattern at `offset`."""
    if not PATTERN.startswith(data, offset % BLOCK):
        raise WrongDataError(f"{len(data)} bytes at {offset} are not what was sent")


async def serve(channel: Channel) -> None:
    """The server's side of all measurements."""
    kind, count = REQUEST.unpack(await channel.readexactly(REQUEST.size))
    if kind == b"E":
        while data := await channel.read(READ):
            await channel.write(data)
        return
    started = time.perf_counter()
    received = await (_take_bytes if kind == b"S" else _take_messages)(channel, count)
    await channel.write(REPORT.pack(received, time.perf_counter() - started))
    await channel.write_eof()


async def _take_bytes(channel: Channel, size: int) -> int:
    offset = 0
    while offset < size:
        data = await channel.read(READ)
        if not data:
            break
        check(data, offset)
        offset += len(data)
    return offset


async def _take_messages(channel: Channel, count: int) -> int:
    for index in range(count):
        check(await channel.readexactly(MESSAGE), index * MESSAGE)
    return count * MESSAGE


async def connect(dialler: Dialler) -> float:
    """Milliseconds until connected, cold."""
    started = time.perf_counter()
    await dialler.connect()
    return (time.perf_counter() - started) * 1e3


async def echo(channel: Channel, count: int) -> float:
    """Median round trip of `ECHO` bytes in microseconds."""
    await channel.write(REQUEST.pack(b"E", 0))
    samples = []
    for index in range(count):
        data = expected(index * ECHO, ECHO)
        started = time.perf_counter()
        await channel.write(data)
        answer = await channel.readexactly(ECHO)
        samples.append(time.perf_counter() - started)
        if answer != data:
            raise WrongDataError(f"echo {index} is not what was sent")
    await channel.write_eof()
    return sorted(samples)[count // 2] * 1e6


async def goodput(channel: Channel, size: int) -> float:
    """Megabytes (10**6) per second of one stream."""
    await channel.write(REQUEST.pack(b"S", size))
    for offset in range(0, size, WRITE):
        await channel.write(expected(offset, min(WRITE, size - offset)))
    return size / await _report(channel, size) / 1e6


async def messages(channel: Channel, count: int) -> float:
    """Messages of `MESSAGE` bytes per second, each written and read by itself."""
    await channel.write(REQUEST.pack(b"M", count))
    for index in range(count):
        await channel.write(expected(index * MESSAGE, MESSAGE))
    return count / await _report(channel, count * MESSAGE)


async def first_echo(dialler: Dialler, *, early: bool) -> float:
    """Milliseconds from the dial to the first answer."""
    started = time.perf_counter()
    await dialler.connect(early=early)
    channel = await dialler.open()
    await channel.write(REQUEST.pack(b"E", 0) + expected(0, ECHO))
    if await channel.readexactly(ECHO) != expected(0, ECHO):
        raise WrongDataError("the echo is not what was sent")
    elapsed = time.perf_counter() - started
    await channel.write_eof()
    return elapsed * 1e3


async def _report(channel: Channel, size: int) -> float:
    received, seconds = REPORT.unpack(await channel.readexactly(REPORT.size))
    if received != size:
        raise WrongDataError(f"{received} of {size} bytes arrived")
    await channel.write_eof()
    return float(seconds)
