"""What arrives: packets in any order become events, and acknowledgements that are due.

Stream bytes are kept no longer than one batch. Pieces that continue each other, as those of a GRO read nearly always
do, are joined into one event, because what the session does with an event costs more than the copy. Only control
bytes wait here for what is missing before them.

An ACK is due at the end of a batch in which the second packet to be acknowledged has arrived, or one that was out of
order (RFC 9000 section 13.2.1), else MAX_ACK_DELAY after the first: one ACK for each batch, however large it is.
"""

import struct
from collections.abc import Callable, Iterable
from typing import Final

from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import VARINT_MAX, ProtocolViolation, read_varint
from overlay.protocol.udp.control import ControlReceiver
from overlay.protocol.udp.payload import (
    Ack,
    Buffer,
    Close,
    ControlPiece,
    CryptoPiece,
    Datagram,
    Done,
    FrameType,
    NewId,
    PathChallenge,
    PathResponse,
    StreamPiece,
    encode_ack,
    read_frames,
)
from overlay.protocol.udp.ranges import ReceivedNumbers
from overlay.protocol.udp.rtt import MAX_ACK_DELAY

_STREAM: Final = int(FrameType.STREAM)
_ELICITING_LIMIT: Final = 2
"""Packets after which an ACK is due (RFC 9000 section 13.2.2)."""
_read_4 = struct.Struct("!I").unpack_from


class ControlData:
    """Bytes of the control stream: in order, each once."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


Event = StreamPiece | ControlData | Datagram | PathChallenge | PathResponse | Close | NewId | Done


class Inbox:
    """The receiving half of a connection.

    Args:
        acknowledge: gets each ACK frame and the time.
        floor: tells below which packet number acknowledgements change nothing.

    Attributes:
        numbers: which packets have arrived.
        duplicates: packets that had, or may have, arrived before.
    """

    def __init__(self, acknowledge: Callable[[Ack, float], None], floor: Callable[[], int]) -> None:
        self.numbers = ReceivedNumbers()
        self.duplicates = 0
        self._acknowledge = acknowledge
        self._floor = floor
        self._control = ControlReceiver()
        self._events: list[Event] = []
        self._eliciting = 0
        """Packets that wait to be acknowledged."""
        self._ack_at = 0.0
        self._largest_at = 0.0
        self._stream = -1
        self._start = self._end = 0
        self._pieces: list[Buffer] = []
        """Of `_stream`, from `_start` up to `_end`, without a gap."""

    def receive(self, packets: Iterable[tuple[int, Buffer]], now: float) -> None:
        """Take packets in the order of their arrival; `take_events` comes next, at the end of the batch.

        Args:
            packets: the whole number and the payload of each, as it was sealed. Payloads must not change before
                `take_events`.
            now: the time, in seconds.

        Raises:
            ProtocolViolation: the peer, who has proven its key, has sent nonsense; close the connection.
        """
        numbers = self.numbers
        largest = numbers.largest
        expected = largest + 1
        # Whatever is used for each packet of bulk is a local name in here.
        stream, end, append = self._stream, self._end, self._pieces.append
        eliciting = 0
        gap = False
        try:
            for number, payload in packets:
                if number == expected:
                    expected += 1
                else:
                    numbers.largest = expected - 1
                    if not numbers.add(number):
                        self.duplicates += 1
                        continue
                    expected = numbers.largest + 1
                    gap = True
                if payload[0] != _STREAM:
                    self._stream, self._end = stream, end
                    eliciting += self._receive_frames(payload, now)
                    stream, end = self._stream, self._end
                    continue
                eliciting += 1
                its_stream = payload[1]
                position = 2
                if its_stream >= 0x40:
                    its_stream, position = read_varint(payload, 1)
                first = payload[position]
                if 0x80 <= first < 0xC0:
                    offset = _read_4(payload, position)[0] & 0x3FFF_FFFF
                    data = payload[position + 4 :]
                else:
                    offset, position = read_varint(payload, position)
                    data = payload[position:]
                    if offset + len(data) > VARINT_MAX:
                        raise ProtocolViolation(CloseCode.FRAME_ERROR, "a piece beyond the largest offset")
                if not data:
                    raise ProtocolViolation(CloseCode.FRAME_ERROR, "a piece of no bytes")
                if offset == end and its_stream == stream:
                    append(data)
                else:
                    self._begin(its_stream, offset, data)
                    stream = its_stream
                end = offset + len(data)
        except (IndexError, struct.error):
            raise ProtocolViolation(CloseCode.FRAME_ERROR, "a frame is cut short") from None
        numbers.largest = expected - 1
        self._stream, self._end = stream, end
        if expected - 1 > largest:
            self._largest_at = now
        if eliciting:
            if not self._eliciting:
                self._ack_at = now + MAX_ACK_DELAY
            self._eliciting += eliciting
            if gap or self._eliciting >= _ELICITING_LIMIT:
                self._ack_at = now

    def take_events(self) -> list[Event]:
        """What has arrived since the last call. The data of all events are `bytes`."""
        self._finish()
        events, self._events = self._events, []
        return events

    def ack_due(self) -> float | None:
        """When an ACK must leave; None: there is nothing to acknowledge."""
        return self._ack_at if self._eliciting else None

    def take_ack(self, now: float, room: int) -> bytes:
        """An ACK of all that has arrived, in up to `room` bytes; b"" if nothing waits for one."""
        if not self._eliciting:
            return b""
        self._eliciting = 0
        # Deadlines are a tick ahead of the clock at times; a delay is never below zero.
        return encode_ack(max(0.0, now - self._largest_at), self.numbers.take_ranges(), room)

    def _receive_frames(self, payload: Buffer, now: float) -> bool:
        frames, eliciting = read_frames(payload, self._floor())
        for frame in frames:
            if isinstance(frame, Ack):
                self._acknowledge(frame, now)
            elif isinstance(frame, StreamPiece):
                if frame.stream == self._stream and frame.offset == self._end:
                    self._pieces.append(frame.data)
                    self._end += len(frame.data)
                else:
                    self._begin(frame.stream, frame.offset, frame.data)
            elif isinstance(frame, ControlPiece):
                if data := self._control.receive(frame.offset, frame.data):
                    self._events.append(ControlData(data))
            elif isinstance(frame, Datagram):
                self._events.append(Datagram(bytes(frame.data)))
            elif isinstance(frame, CryptoPiece):
                raise ProtocolViolation(CloseCode.STATE_ERROR, "handshake data after the handshake")
            else:
                self._events.append(frame)
        return eliciting

    def _begin(self, stream: int, offset: int, data: Buffer) -> None:
        """A piece that does not continue the one before."""
        self._finish()
        self._stream = stream
        self._start = offset
        self._end = offset + len(data)
        self._pieces.append(data)

    def _finish(self) -> None:
        """Make an event of the pieces gathered."""
        pieces = self._pieces
        if pieces:
            data = bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)
            self._events.append(StreamPiece(self._stream, self._start, data))
            pieces.clear()
            self._stream = -1
