"""What waits to be sent, and how it is cut into packets.

A packet is filled in this order: an ACK, single frames (connection ids, path responses), control bytes, datagrams, and
stream bytes up to its end. So control overtakes everything, and whatever is small travels with bulk for free. Datagrams
and streams take turns, or who sends more datagrams than the path carries would never see the end of a stream.

Bulk is cut by the run: successive packets filled by one piece of a stream differ in nothing but the offset, so they are
made in one comprehension, and remembered in one record. What is lost comes back as views of the same bytes and goes
before everything new of its kind; it is cut anew, as the path may carry less by then.
"""

import struct
from collections import deque
from typing import Final

from overlay.protocol.frames import varint
from overlay.protocol.udp.control import MAXIMUM_WAITING, ControlSender
from overlay.protocol.udp.payload import Buffer, FrameType, encode_piece
from overlay.protocol.udp.sent import SentBurst, StreamRun

DATAGRAM_QUEUE: Final = 256 * 1024
"""Bytes of datagrams that wait; beyond it they are dropped, which is what a datagram is for."""
DATAGRAM_AHEAD: Final = 16 * 1024
"""Bytes of datagrams that wait here, beside what may leave at once, if they can as well wait where they come from."""
DATAGRAM_COST: Final = 64
"""Bytes that each waiting datagram counts besides its own, or a queue of empty ones would have no bound."""
MAXIMUM_FRAMES: Final = 64
"""Single frames that wait. Connection ids are four; more than that are answers to a flood of challenges."""

_STREAM_OVERHEAD: Final = 17
"""Bytes of a STREAM header at most."""
_SHORTEST_PIECE: Final = 16
"""Bytes of data for which a header is worth while at the end of a packet."""
_CONTROL_OVERHEAD: Final = 11
"""Type, an offset of 8 bytes and a length of 2; datagrams have less than 16,384 bytes of control."""
_MAXIMUM_CONTROL: Final = 16_383
_OFFSET_4: Final = struct.Struct("!I")
_OFFSET_8: Final = struct.Struct("!Q")
_STREAM: Final = bytes((FrameType.STREAM,))
_STREAM_SHORT: Final = bytes((FrameType.STREAM_SHORT,))
_DATAGRAM: Final = bytes((FrameType.DATAGRAM,))


class _Piece:
    """Bytes of a stream that wait."""

    __slots__ = ("data", "offset", "position", "stream")

    def __init__(self, stream: int, offset: int, data: Buffer) -> None:
        self.stream = stream
        self.offset = offset
        """Of the first byte of `data`."""
        self.data = memoryview(data)
        self.position = 0
        """How many bytes of `data` are sent."""


class Outbox:
    """The queues of one connection.

    Attributes:
        control: the ordered bytes of the session's frames.
        stream_bytes: stream bytes that wait, those to be sent again included.
    """

    def __init__(self, control_limit: int = MAXIMUM_WAITING) -> None:
        self.control = ControlSender(control_limit)
        self.stream_bytes = 0
        self._longest_datagram = 0
        self._frames: deque[tuple[bytes, bool]] = deque()
        self._datagrams: deque[bytes] = deque()
        self._datagram_bytes = 0
        self._again: deque[_Piece] = deque()
        self._fresh: deque[_Piece] = deque()
        self._after_datagrams = False
        """Whether it was datagrams that left last, and it is the streams' turn."""

    def __bool__(self) -> bool:
        """Whether something may be sent."""
        return bool(self.stream_bytes or self._datagrams or self._frames or self.control.ready)

    def add_stream(self, stream: int, offset: int, data: Buffer) -> None:
        """Queue bytes of a stream; they are not copied and must not change any more."""
        if data:
            self._fresh.append(_Piece(stream, offset, data))
            self.stream_bytes += len(data)

    def add_datagram(self, data: bytes) -> bool:
        """Queue a datagram; False when it is too long, or too many wait."""
        cost = len(data) + DATAGRAM_COST
        if len(data) > self._longest_datagram or self._datagram_bytes + cost > DATAGRAM_QUEUE:
            return False
        self._datagrams.append(data)
        self._datagram_bytes += cost
        return True

    def datagram_room(self, allowed: int) -> int:
        """How many bytes of datagrams may be added when `allowed` could leave at once: the last may go beyond."""
        limit = DATAGRAM_QUEUE - self._longest_datagram - DATAGRAM_COST
        return min(max(0, allowed) + DATAGRAM_AHEAD, limit) - self._datagram_bytes

    def set_room(self, room: int) -> None:
        """A packet has room for so many bytes of frames; datagrams that fit into none any more are dropped."""
        if room - 1 < self._longest_datagram:
            self._datagrams = deque(data for data in self._datagrams if len(data) < room)
            self._datagram_bytes = sum(map(len, self._datagrams)) + DATAGRAM_COST * len(self._datagrams)
        self._longest_datagram = room - 1

    def add_frame(self, frame: bytes, *, again: bool) -> bool:
        """Queue a frame that is neither control, nor datagram, nor stream; False when too many wait.

        Args:
            frame: encoded, shorter than any packet.
            again: whether it is sent again if it is lost.
        """
        if len(self._frames) >= MAXIMUM_FRAMES:
            return False
        self._frames.append((frame, again))
        return True

    def take_run(self, number: int, room: int, packets: int, burst: SentBurst) -> list[bytes]:
        """Successive full packets of nothing but one stream's bytes, or of one datagram each.

        Args:
            number: of the first packet.
            room: bytes of a payload.
            packets: how many at most.
            burst: gets the record of them.

        Returns:
            Payloads of one size, of `room` bytes unless they are datagrams; none when `fill` is to make the next one.
        """
        if self._frames or self.control.ready:
            return []
        if self._is_datagrams_turn:
            return [] if burst.size else self._datagram_run(room, packets)
        queue = self._again or self._fresh
        if not queue:
            return []
        piece = queue[0]
        data, start = piece.data, piece.position
        left = len(data) - start
        offset = piece.offset + start
        prefix = _STREAM + varint(piece.stream)
        if offset + left < 0x4000_0000:
            mark, pack, step = 0x8000_0000, _OFFSET_4.pack, room - len(prefix) - 4
        else:
            mark, pack, step = 0xC000_0000_0000_0000, _OFFSET_8.pack, room - len(prefix) - 8
        count = min(left // step, packets)
        if not count:
            return []
        end = start + count * step
        join, base = b"".join, piece.offset | mark
        # The mark is the length bits of a variable-length integer: above all bits of the offset, whatever is added.
        payloads = [join((prefix, pack(base + at), data[at : at + step])) for at in range(start, end, step)]
        burst.runs.append(StreamRun(number, number + count - 1, piece.stream, offset, step, data[start:end]))
        self.stream_bytes -= end - start
        self._after_datagrams = False
        if end == len(data):
            queue.popleft()
        else:
            piece.position = end
        return payloads

    def fill(self, number: int, room: int, head: bytes, burst: SentBurst) -> bytes:
        """One payload of all that waits, in its order.

        Args:
            number: of the packet.
            room: bytes of a payload.
            head: what it begins with, an ACK or nothing.
            burst: gets the record of it.

        Returns:
            `head` alone, or b"", when nothing fits.
        """
        parts: list[Buffer] = [head]
        left = room - len(head)
        while self._frames and len(self._frames[0][0]) <= left:
            frame, again = self._frames.popleft()
            parts.append(frame)
            left -= len(frame)
            if again:
                burst.frames.append((number, frame))
        while left >= _CONTROL_OVERHEAD + _SHORTEST_PIECE and self.control.ready:
            taken = self.control.take(min(left - _CONTROL_OVERHEAD, _MAXIMUM_CONTROL))
            if taken is None:
                break
            offset, data = taken
            frame = encode_piece(FrameType.CONTROL, offset, data)
            parts.append(frame)
            left -= len(frame)
            burst.control.append((number, offset, offset + len(data)))
        if self._is_datagrams_turn and len(self._datagrams[0]) < left:
            # A datagram has no length: it ends the packet.
            parts += (_DATAGRAM, self._take_datagram())
        elif self.stream_bytes:
            self._fill_with_streams(number, left, parts, burst)
        return b"".join(parts)

    def give_back(self, burst: SentBurst, low: int, high: int) -> None:
        """Packets of a burst are lost: queue again what is not to be lost with them."""
        for run in burst.runs:
            first, last = max(low, run.first), min(high, run.last)
            if first <= last:
                start = (first - run.first) * run.step
                data = run.data[start : (last + 1 - run.first) * run.step]
                self._again.append(_Piece(run.stream, run.offset + start, data))
                self.stream_bytes += len(data)
        for number, offset, end in burst.control:
            if low <= number <= high:
                self.control.lost(offset, end)
        for number, frame in burst.frames:
            if low <= number <= high:
                self._frames.append((frame, True))

    def acknowledged(self, burst: SentBurst, low: int, high: int) -> None:
        """Packets of a burst have arrived."""
        for number, offset, end in burst.control:
            if low <= number <= high:
                self.control.acknowledged(offset, end)

    @property
    def _is_datagrams_turn(self) -> bool:
        return bool(self._datagrams) and not (self._after_datagrams and self.stream_bytes)

    def _fill_with_streams(self, number: int, left: int, parts: list[Buffer], burst: SentBurst) -> None:
        """Stream bytes up to the end of a packet; short pieces share it."""
        self._after_datagrams = False
        while self.stream_bytes and left >= _STREAM_OVERHEAD + _SHORTEST_PIECE:
            queue = self._again or self._fresh
            piece = queue[0]
            start = piece.position
            data = piece.data[start : start + left]
            offset = piece.offset + start
            head = varint(piece.stream) + varint(offset)
            size = len(data)
            # A piece that leaves room for another one needs a length.
            if size < self.stream_bytes and size + len(head) + 3 < left - _STREAM_OVERHEAD - _SHORTEST_PIECE:
                head = _STREAM_SHORT + head + varint(size)
            else:
                head = _STREAM + head
                data = data[: left - len(head)]
                size = len(data)
                left = 0
            parts += (head, data)
            left -= len(head) + size
            burst.runs.append(StreamRun(number, number, piece.stream, offset, size, data))
            self.stream_bytes -= size
            piece.position += size
            if piece.position == len(piece.data):
                queue.popleft()

    def _take_datagram(self) -> bytes:
        data = self._datagrams.popleft()
        self._after_datagrams = True
        self._datagram_bytes -= len(data) + DATAGRAM_COST
        return data

    def _datagram_run(self, room: int, packets: int) -> list[bytes]:
        """Datagrams of one size, each in a packet of its own."""
        payloads: list[bytes] = []
        size = len(self._datagrams[0])
        if size < room:
            while len(payloads) < packets and self._datagrams and len(self._datagrams[0]) == size:
                payloads.append(_DATAGRAM + self._take_datagram())
        return payloads
