"""How frames travel: one after the other on a stream, or each in a datagram of its own.

Each side opens two streams for PROTOCOL, one of each priority, and is the only one who writes on them: a **lane**. All
integers are variable-length integers of RFC 9000 section 16. A lane begins with a greeting:

    +---------------+---------------+----------------+-----------------------+
    |  length (i)   |  longest (i)  |  instance (i)  |  ignored, up to length|
    +---------------+---------------+----------------+-----------------------+

`longest` is how many bytes a frame may have that the sender of the greeting takes; `instance` is a random number,
another one for each driver that a session sees at that end; what follows is room for later versions. Then come frames:

    +---------------+-----------------------+
    |  length (i)   |    frame (length)     |
    +---------------+-----------------------+

A datagram is a priority (8 bits: 0 control, 1 bulk) and the frame.
"""

from functools import lru_cache
from typing import Final, NamedTuple

from overlay.protocol.frames import read_varint, varint
from overlay.protocol.stream import Priority

PROTOCOL: Final = "overlay-frames/1"
"""The name that lanes are opened for."""
LONGEST_GREETING: Final = 64
"""Bytes of a greeting behind its length: sixteen for what we know, the others for what is not thought of yet."""
DATAGRAM_OVERHEAD: Final = 1
"""Bytes of a datagram that are not the frame."""

_MARKS: Final = tuple(bytes((priority,)) for priority in Priority)
_PRIORITIES: Final = tuple(Priority)

frame_head = lru_cache(maxsize=1024)(varint)
"""What stands in front of a frame of so many bytes. Frames come in few sizes, and to look one up is faster."""


class WireError(Exception):
    """The peer broke the rules of a lane; `reason` says how. Its session is to be closed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Greeting(NamedTuple):
    """What a driver says first on each of its lanes."""

    longest: int
    """How many bytes a frame may have that it takes."""
    instance: int
    """Tells it from a driver of the same peer that was there before."""

    def encode(self) -> bytes:
        """As it travels.

        Raises:
            ValueError: a number is negative or above 2**62 - 1.
        """
        body = varint(self.longest) + varint(self.instance)
        return varint(len(body)) + body


class LaneReader:
    """Finds the greeting and the frames in the bytes of one lane, however they are cut.

    It keeps the beginning of one frame at most, so up to `limit` bytes.

    Args:
        limit: how many bytes a frame may have: what our own greeting said.

    Attributes:
        greeting: the peer's; None until it has come.
        is_broken: `receive` has raised.
    """

    def __init__(self, limit: int) -> None:
        self.greeting: Greeting | None = None
        self.is_broken = False
        self._limit = limit
        self._rest = bytearray()
        """The beginning of what is not whole yet."""
        self._whole = 0
        """Length of `_rest` when it will be whole; 0: its length is not known yet."""

    def receive(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the stream; the frames that are whole by now, in order.

        Raises:
            WireError: a greeting that is none, or a frame beyond the limit, told as soon as its length is known. Frames
                before it in `data` are lost; the reader must not be used any more.
        """
        frames: list[bytes] = []
        try:
            self._receive(data, frames)
        except WireError:
            self.is_broken = True
            raise
        return frames

    def _receive(self, data: bytes, frames: list[bytes]) -> None:
        rest = self._rest
        missing = 0
        if rest:
            if self._whole:
                missing = self._whole - len(rest)
                rest += data[:missing]
                if len(rest) < self._whole:
                    return
                # Only the frame that was cut is joined; the others are copied once, out of `data`.
                first = bytes(rest)
                rest.clear()
                self._find(first, 0, frames)
            else:
                data = bytes(rest) + data
                rest.clear()
        self._find(data, missing, frames)

    def _find(self, data: bytes, position: int, frames: list[bytes]) -> None:
        """Append the whole frames from `position` on to `frames`, and keep what is left."""
        greeted = self.greeting is not None
        limit = self._limit if greeted else LONGEST_GREETING
        end = len(data)
        append = frames.append
        while position < end:
            begin = position
            size = data[begin]
            position += 1
            if size >= 0x40:
                position = begin + (1 << (size >> 6))
                if position > end:
                    self._keep(data, begin, 0)
                    return
                size = (size & 0x3F) << 8 | data[begin + 1] if size < 0x80 else read_varint(data, begin)[0]
            if size > limit:
                what = "frame" if greeted else "greeting"
                raise WireError(f"a {what} of {size} bytes, the limit is {limit}")
            stop = position + size
            if stop > end:
                self._keep(data, begin, stop - begin)
                return
            if greeted:
                append(data[position:stop])
            else:
                self.greeting = _read_greeting(data[position:stop])
                greeted = True
                limit = self._limit
            position = stop

    def _keep(self, data: bytes, begin: int, whole: int) -> None:
        self._rest += data[begin:]
        self._whole = whole


def _read_greeting(body: bytes) -> Greeting:
    try:
        longest, end = read_varint(body, 0)
        return Greeting(longest, read_varint(body, end)[0])
    except IndexError:
        raise WireError("a greeting that is cut short") from None


def encode_datagram(priority: Priority, frame: bytes) -> bytes:
    """A frame as a datagram."""
    return _MARKS[priority] + frame


def decode_datagram(data: bytes) -> tuple[Priority, bytes] | None:
    """Priority and frame of a datagram; None: it is none of ours, or of a later version."""
    if not data or data[0] >= len(_PRIORITIES):
        return None
    return _PRIORITIES[data[0]], data[1:]
