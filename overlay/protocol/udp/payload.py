"""What is inside a packet: frames.

Frames follow each other without a length, as QUIC's do; (i) is a variable-length integer of RFC 9000 section 16:

    0x00  PADDING         (nothing; a run of zeros)
    0x01  PING            (nothing)
    0x02  ACK             largest (i) | delay (i, us) | first (i) | count (8) | count x { gap (16) | length (16) }
    0x03  CONTROL         offset (i) | length (i) | data
    0x04  STREAM          stream (i) | offset (i) | data (the rest of the packet)
    0x05  STREAM, short   stream (i) | offset (i) | length (i) | data
    0x06  DATAGRAM        data (the rest of the packet)
    0x07  PATH_CHALLENGE  data (8 bytes)
    0x08  PATH_RESPONSE   data (8 bytes)
    0x09  CLOSE           code (i) | length (i) | reason (UTF-8)
    0x0a  NEW_ID          sequence (i) | connection id (8 bytes) | reset token (16 bytes)
    0x0b  DONE            (nothing; the acceptor's handshake is over)
    0x0c  CRYPTO          offset (i) | length (i) | data              HANDSHAKE packets only, as ACK, PADDING, CLOSE

An ACK names the packets from `largest - first` to `largest`, then, downwards, leaves out `gap` packets (at least one)
and names the `length` packets (at least one) below them. Pairs of fixed width are read by one call; a number beyond
65,535 ends the list, as what lies so far back was acknowledged long ago. `delay` is how long `largest` has waited. A
packet has one ACK at most: one says all, and costs its reader a hundred times as much as its writer.

STREAM without a length is what bulk consists of: one header, then data to the packet's end. Every frame but PADDING,
ACK and CLOSE is to be acknowledged ("ack-eliciting", RFC 9002 section 2).
"""

import re
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import VARINT_MAX, ProtocolViolation, clip, read_varint, varint
from overlay.protocol.udp.ranges import MAXIMUM_RANGES
from overlay.protocol.udp.wire import ID_SIZE, TOKEN_SIZE

Buffer = bytes | bytearray | memoryview


class FrameType(IntEnum):
    """The first byte of a frame."""

    PADDING = 0x00
    PING = 0x01
    ACK = 0x02
    CONTROL = 0x03
    STREAM = 0x04
    STREAM_SHORT = 0x05
    DATAGRAM = 0x06
    PATH_CHALLENGE = 0x07
    PATH_RESPONSE = 0x08
    CLOSE = 0x09
    NEW_ID = 0x0A
    DONE = 0x0B
    CRYPTO = 0x0C


@dataclass(frozen=True, slots=True)
class Ack:
    """Packets that arrived: (lowest, highest) of each range, from the largest downwards; `delay` is in seconds."""

    largest: int
    delay: float
    ranges: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class ControlPiece:
    """Bytes of the control stream."""

    offset: int
    data: Buffer


@dataclass(frozen=True, slots=True)
class CryptoPiece:
    """Bytes of the TLS handshake."""

    offset: int
    data: Buffer


@dataclass(frozen=True, slots=True)
class StreamPiece:
    """Bytes of a stream, at their absolute offset; pieces come in any order, and more than once."""

    stream: int
    offset: int
    data: Buffer


@dataclass(frozen=True, slots=True)
class Datagram:
    """One unreliable message."""

    data: Buffer


@dataclass(frozen=True, slots=True)
class PathChallenge:
    """To be answered, to where it came from, with the same data."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PathResponse:
    """The answer."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The peer has ended the connection."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class NewId:
    """A further connection id by which the sender of this frame may be addressed."""

    sequence: int
    connection_id: bytes
    token: bytes


@dataclass(frozen=True, slots=True)
class Done:
    """The acceptor's handshake is over."""


Frame = Ack | ControlPiece | CryptoPiece | StreamPiece | Datagram | PathChallenge | PathResponse | Close | NewId | Done

PING_FRAME: Final = b"\x01"
DONE_FRAME: Final = b"\x0b"


def encode_ack(delay: float, ranges: list[tuple[int, int]], room: int) -> bytes:
    """An ACK frame of at most `room` bytes, 32 at least; the lowest ranges are left out if it is too small.

    `delay` is how many seconds ago the largest packet arrived; `ranges` are (lowest, highest), from the largest
    downwards, at least one.
    """
    low, largest = ranges[0]
    head = b"\x02" + varint(largest) + varint(int(delay * 1e6)) + varint(largest - low)
    pairs: list[int] = []
    for lower, upper in ranges[1 : 1 + min(MAXIMUM_RANGES, (room - len(head) - 1) // 4)]:
        gap = low - upper - 1
        length = upper - lower + 1
        if gap > 0xFFFF:
            break
        pairs.append(gap)
        pairs.append(min(length, 0xFFFF))
        if length > 0xFFFF:
            break
        low = lower
    return head + bytes((len(pairs) // 2,)) + _PAIRS[len(pairs) // 2].pack(*pairs)


def encode_piece(kind: FrameType, offset: int, data: Buffer) -> bytes:
    """A CONTROL or CRYPTO frame."""
    return b"".join((bytes((kind,)), varint(offset), varint(len(data)), data))


def encode_challenge(kind: FrameType, data: bytes) -> bytes:
    """A PATH_CHALLENGE or PATH_RESPONSE frame; `data` has 8 bytes."""
    return bytes((kind,)) + data


def encode_new_id(sequence: int, connection_id: bytes, token: bytes) -> bytes:
    """A NEW_ID frame."""
    return b"\x0a" + varint(sequence) + connection_id + token


def encode_close(code: int, reason: str) -> bytes:
    """A CLOSE frame; a long reason is cut."""
    text = clip(reason)
    return b"\x09" + varint(code) + varint(len(text)) + text


def read_frames(payload: Buffer, floor: int = 0) -> tuple[list[Frame], bool]:
    """The frames of a payload, PADDING and PING left out, and whether it is to be acknowledged.

    Args:
        payload: what was sealed; the data of the frames are views of it.
        floor: ranges of an ACK that lie below this packet number are of no interest and left out.

    Raises:
        ProtocolViolation: it can't be parsed, or is empty.
    """
    view = memoryview(payload)
    frames: list[Frame] = []
    eliciting = acknowledges = False
    position, end = 0, len(view)
    if not end:
        raise ProtocolViolation(CloseCode.FRAME_ERROR, "a packet without a frame")
    try:
        while position < end:
            kind = view[position]
            position += 1
            if kind == _ACK:
                if acknowledges:
                    raise ProtocolViolation(CloseCode.FRAME_ERROR, "two ACKs in a packet")
                acknowledges = True
                ack, position = _read_ack(view, position, floor)
                frames.append(ack)
            elif kind == _PADDING:
                run = _ZEROS.match(view, position)
                position = run.end() if run else position
            else:
                eliciting |= kind != _CLOSE
                if kind != _PING:
                    frame, position = _read_frame(kind, view, position)
                    frames.append(frame)
    except (IndexError, struct.error, UnicodeDecodeError):
        raise ProtocolViolation(CloseCode.FRAME_ERROR, "a frame is cut short") from None
    return frames, eliciting


def _read_frame(kind: int, view: memoryview, position: int) -> tuple[Frame, int]:
    """One frame but PADDING, PING and ACK; the commonest first."""
    if kind in _STREAMS:
        stream, position = read_varint(view, position)
        offset, position = read_varint(view, position)
        length = len(view) - position
        if kind == _STREAM_SHORT:
            length, position = read_varint(view, position)
        data, position = _take(view, position, length)
        _check_piece(offset, data)
        return StreamPiece(stream, offset, data), position
    if kind not in _KNOWN:
        raise ProtocolViolation(CloseCode.FRAME_ERROR, f"a frame of type {kind:#x}")
    if kind == _DATAGRAM:
        return Datagram(view[position:]), len(view)
    if kind == _DONE:
        return Done(), position
    if kind in _PATH:
        data, position = _take(view, position, 8)
        return _PATH[kind](bytes(data)), position
    first, position = read_varint(view, position)
    if kind == _NEW_ID:
        data, position = _take(view, position, ID_SIZE + TOKEN_SIZE)
        return NewId(first, bytes(data[:ID_SIZE]), bytes(data[ID_SIZE:])), position
    second, position = read_varint(view, position)
    if kind == _CLOSE:
        data, position = _take(view, position, second)
        return Close(first, str(data, "utf-8")), position
    data, position = _take(view, position, second)
    _check_piece(first, data)
    return _IN_ORDER[kind](first, data), position


def _read_ack(view: memoryview, position: int, floor: int) -> tuple[Ack, int]:
    largest, position = read_varint(view, position)
    delay, position = read_varint(view, position)
    first, position = read_varint(view, position)
    count = view[position]
    if (low := largest - first) < 0 or count > MAXIMUM_RANGES:
        raise ProtocolViolation(CloseCode.FRAME_ERROR, "an ACK with impossible ranges")
    ranges = [(low, largest)]
    pairs = _PAIRS[count].unpack_from(view, position + 1)
    for gap, length in zip(pairs[::2], pairs[1::2], strict=True):
        if low <= floor:
            break
        high = low - gap - 1
        low = high - length + 1
        if not gap or not length or low < 0:
            raise ProtocolViolation(CloseCode.FRAME_ERROR, "an ACK with impossible ranges")
        ranges.append((low, high))
    return Ack(largest, delay / 1e6, ranges), position + 1 + 4 * count


def _take(view: memoryview, position: int, size: int) -> tuple[memoryview, int]:
    end = position + size
    if end > len(view):
        raise IndexError
    return view[position:end], end


def _check_piece(offset: int, data: Buffer) -> None:
    if not data or offset + len(data) > VARINT_MAX:
        raise ProtocolViolation(CloseCode.FRAME_ERROR, "a piece of no bytes, or beyond the largest offset")


_PAIRS: Final = [struct.Struct(f"!{2 * count}H") for count in range(MAXIMUM_RANGES + 1)]
_ZEROS: Final = re.compile(rb"\0*")
# Plain integers: to compare with a member of an enumeration takes three times as long.
_PADDING, _PING, _ACK = int(FrameType.PADDING), int(FrameType.PING), int(FrameType.ACK)
_CLOSE, _NEW_ID, _DONE = int(FrameType.CLOSE), int(FrameType.NEW_ID), int(FrameType.DONE)
_DATAGRAM, _STREAM_SHORT = int(FrameType.DATAGRAM), int(FrameType.STREAM_SHORT)
_STREAMS: Final = frozenset((int(FrameType.STREAM), _STREAM_SHORT))
_KNOWN: Final = frozenset(map(int, FrameType))
_PATH: Final[dict[int, type[PathChallenge | PathResponse]]] = {7: PathChallenge, 8: PathResponse}
_IN_ORDER: Final[dict[int, type[ControlPiece | CryptoPiece]]] = {3: ControlPiece, 12: CryptoPiece}
