"""The session's wire format: frames, and the reader that finds them in a byte stream.

A frame is a type, the length of its body, and the body. All integers are variable-length integers of RFC 9000
section 16 (1, 2, 4 or 8 bytes; the two highest bits tell which), unless a width is given:

     0                   1                   2
    +---------------+---------------+-----------------------+
    |   type (i)    |  length (i)   |     body (length)     |
    +---------------+---------------+-----------------------+

Why a length on every frame: a reader skips odd types that it does not know (they are optional); an even type that
it does not know closes the connection (FRAME_ERROR). So the protocol grows without a version number.

On **TCP** the frames follow each other inside TLS. On **QUIC** they do so on one unidirectional control stream for
each direction; STREAM and DATAGRAM are replaced by QUIC's own streams (runs, see below) and DATAGRAM frames, and
CLOSE by QUIC's CONNECTION_CLOSE.

    type  name        body
    0x00  HELLO       process (8 bytes) | mine (8 bytes) | your process, yours (8 bytes each, 0 = unknown)
                      | linger (i, ms) | dial (i) | features (i) | streams (i) | window (i)      of the dialler, first
    0x02  ACCEPT      process (8 bytes) | mine (8 bytes) | yours (8 bytes) | linger (i, ms)
                      | features (i) | streams (i) | window (i)                     answer of the acceptor
    0x04  WINDOW      stream (i) | received (i) | limit (i)       acknowledgement and credit in one
    0x06  STREAMS     limit (i)                     how many streams the receiver of this frame may open in all
    0x08  FIN         stream (i) | final (i)        the stream has `final` bytes; the FIN itself is offset `final`
    0x0a  RESET       stream (i) | final (i) | code (i)           no more is sent; counts as received up to `final`
    0x0c  STOP        stream (i) | code (i)         the reader has gone: please RESET
    0x0e  GONE        stream (i)                    that stream is closed and forgotten here
    0x10  PING        nonce (8 bytes)
    0x12  PONG        nonce (8 bytes)
    0x14  SYNC        (empty)                       all WINDOWs of this attach have been sent
    0x16  RETIRE      (empty)                       send nothing more here; close when all is delivered
    0x18  CLOSE       code (i) | reason (UTF-8, rest)             TCP only, the last frame
    0x1a  STREAM      stream (i) | offset (i) | data (rest)       TCP only
    0x1c  DATAGRAM    data (rest)                                 TCP only

`streams` and `window` of HELLO and ACCEPT are what their sender grants at the start: how many streams the other side
may open, and how far each new stream may be filled before its first WINDOW. Until they are known, MINIMUM_STREAMS and
MINIMUM_WINDOW hold; their product is what an acceptor holds of a dialler whose HELLO it has not judged yet.

A **run** carries stream data over QUIC: a unidirectional QUIC stream that begins with

    +---------------+---------------+-----------------------+
    |  stream (i)   |  offset (i)   |  data, up to the FIN  |
    +---------------+---------------+-----------------------+

The first bytes of every **stream**, at offset 0, name what is spoken on it. They are data of the stream, so they can
neither be overtaken nor lost:

    +---------------+---------------+-----------------------+
    | priority (8)  |  length (8)   | protocol name (UTF-8) |
    +---------------+---------------+-----------------------+
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final

from overlay.protocol.codes import CloseCode

VARINT_MAX: Final = 2**62 - 1
MINIMUM_STREAMS: Final = 16
MINIMUM_WINDOW: Final = 4096
"""16 streams of 4 KiB are the 64 KiB that may fly before the acceptor has judged a HELLO."""
MAX_CONTROL_BODY: Final = 1024
"""No control frame is longer: the longest is CLOSE with a reason of MAX_REASON bytes."""
MAX_REASON: Final = 256
MAX_STREAM_BODY: Final = 256 * 1024 + 16
"""We send 64 KiB per STREAM frame; a reader hands its parts over as they come, so it buffers nothing of it."""
MAX_DATAGRAM: Final = 65_535
MAX_PROTOCOL_NAME: Final = 255


class ProtocolViolation(Exception):
    """The peer broke the protocol: its connection is closed with `code` and `reason`."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(f"{code.name}: {reason}")
        self.code = code
        self.reason = reason


class Type(IntEnum):
    """The first integer of a frame."""

    HELLO = 0x00
    ACCEPT = 0x02
    WINDOW = 0x04
    STREAMS = 0x06
    FIN = 0x08
    RESET = 0x0A
    STOP = 0x0C
    GONE = 0x0E
    PING = 0x10
    PONG = 0x12
    SYNC = 0x14
    RETIRE = 0x16
    CLOSE = 0x18
    STREAM = 0x1A
    DATAGRAM = 0x1C


def varint(value: int) -> bytes:
    """`value` as a variable-length integer (RFC 9000 section 16).

    Raises:
        ValueError: it is negative or above 2**62 - 1.
    """
    if value < 0:
        raise ValueError(f"{value} is negative")
    if value < 0x40:
        return value.to_bytes(1, "big")
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2, "big")
    if value < 0x4000_0000:
        return (value | 0x8000_0000).to_bytes(4, "big")
    if value <= VARINT_MAX:
        return (value | 0xC000_0000_0000_0000).to_bytes(8, "big")
    raise ValueError(f"{value} does not fit into 62 bits")


def read_varint(data: bytes | bytearray | memoryview, position: int) -> tuple[int, int]:
    """The integer at `position` and the position behind it.

    Raises:
        IndexError: the data ends before the integer does.
    """
    first = data[position]
    if first < 0x40:
        return first, position + 1
    length = 1 << (first >> 6)
    end = position + length
    if end > len(data):
        raise IndexError(f"{length} bytes are announced, {len(data) - position} are there")
    return int.from_bytes(data[position:end], "big") & ((1 << (8 * length - 2)) - 1), end


@dataclass(frozen=True, slots=True)
class Hello:
    """The dialler's first frame."""

    TYPE: ClassVar[Type] = Type.HELLO
    process: int
    """Random, drawn once per start of the process: tells a restart from a second session."""
    mine: int
    """Incarnation of the sender's session."""
    your_process: int
    """The receiver's process, as the sender knows it from that session: another one has never heard of the session."""
    yours: int
    """Incarnation of the receiver's session as the sender knows it; 0 when it knows none."""
    linger: int
    """How long the sender wishes the session to outlive its last connection, in ms."""
    dial: int
    """Counts the sender's dials to this peer: of two connections of one dialler the higher one stays."""
    features: int = 0
    streams: int = MINIMUM_STREAMS
    window: int = MINIMUM_WINDOW

    def body(self) -> bytes:
        """The encoded body."""
        return struct.pack("!QQQQ", self.process, self.mine, self.your_process, self.yours) + b"".join(
            map(varint, (self.linger, self.dial, self.features, self.streams, self.window))
        )


@dataclass(frozen=True, slots=True)
class Accept:
    """The acceptor's answer: the connection belongs to the pair of incarnations (mine, yours) for ever."""

    TYPE: ClassVar[Type] = Type.ACCEPT
    process: int
    mine: int
    yours: int
    linger: int
    features: int = 0
    streams: int = MINIMUM_STREAMS
    window: int = MINIMUM_WINDOW

    def body(self) -> bytes:
        """The encoded body."""
        return struct.pack("!QQQ", self.process, self.mine, self.yours) + b"".join(
            map(varint, (self.linger, self.features, self.streams, self.window))
        )


@dataclass(frozen=True, slots=True)
class Window:
    """Everything below `received` has arrived (FIN and RESET occupy one offset); `limit` is the credit."""

    TYPE: ClassVar[Type] = Type.WINDOW
    stream: int
    received: int
    limit: int

    def body(self) -> bytes:
        """The encoded body."""
        return varint(self.stream) + varint(self.received) + varint(self.limit)


@dataclass(frozen=True, slots=True)
class Streams:
    """How many streams the receiver of this frame may open, counted from the session's start."""

    TYPE: ClassVar[Type] = Type.STREAMS
    limit: int

    def body(self) -> bytes:
        """The encoded body."""
        return varint(self.limit)


@dataclass(frozen=True, slots=True)
class Fin:
    """The stream ends after `final` bytes."""

    TYPE: ClassVar[Type] = Type.FIN
    stream: int
    final: int

    def body(self) -> bytes:
        """The encoded body."""
        return varint(self.stream) + varint(self.final)


@dataclass(frozen=True, slots=True)
class Reset:
    """The stream is abandoned by its sender."""

    TYPE: ClassVar[Type] = Type.RESET
    stream: int
    final: int
    code: int

    def body(self) -> bytes:
        """The encoded body."""
        return varint(self.stream) + varint(self.final) + varint(self.code)


@dataclass(frozen=True, slots=True)
class Stop:
    """The stream is abandoned by its reader."""

    TYPE: ClassVar[Type] = Type.STOP
    stream: int
    code: int

    def body(self) -> bytes:
        """The encoded body."""
        return varint(self.stream) + varint(self.code)


@dataclass(frozen=True, slots=True)
class Gone:
    """The stream is closed in both directions and forgotten: everything on it counts as acknowledged."""

    TYPE: ClassVar[Type] = Type.GONE
    stream: int

    def body(self) -> bytes:
        """The encoded body."""
        return varint(self.stream)


@dataclass(frozen=True, slots=True)
class Ping:
    """Please answer."""

    TYPE: ClassVar[Type] = Type.PING
    nonce: int

    def body(self) -> bytes:
        """The encoded body."""
        return self.nonce.to_bytes(8, "big")


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to the PING with the same nonce, on the same connection."""

    TYPE: ClassVar[Type] = Type.PONG
    nonce: int

    def body(self) -> bytes:
        """The encoded body."""
        return self.nonce.to_bytes(8, "big")


@dataclass(frozen=True, slots=True)
class Sync:
    """The sender has repeated its WINDOWs: streams continue from there."""

    TYPE: ClassVar[Type] = Type.SYNC

    def body(self) -> bytes:
        """The encoded body."""
        return b""


@dataclass(frozen=True, slots=True)
class Retire:
    """This connection is surplus."""

    TYPE: ClassVar[Type] = Type.RETIRE

    def body(self) -> bytes:
        """The encoded body."""
        return b""


@dataclass(frozen=True, slots=True)
class Close:
    """The last frame on a TCP connection."""

    TYPE: ClassVar[Type] = Type.CLOSE
    code: int
    reason: str = ""

    def body(self) -> bytes:
        """The encoded body; the reason is cut at a character's border."""
        return varint(self.code) + clip(self.reason)


@dataclass(frozen=True, slots=True)
class StreamData:
    """A part of a stream's bytes. On TCP one STREAM frame may be handed over in several parts, in order."""

    stream: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Datagram:
    """One unreliable message."""

    TYPE: ClassVar[Type] = Type.DATAGRAM
    data: bytes

    def body(self) -> bytes:
        """The encoded body."""
        return self.data


Control = Hello | Accept | Window | Streams | Fin | Reset | Stop | Gone | Ping | Pong | Sync | Retire | Close | Datagram
Event = Control | StreamData


def clip(reason: str) -> bytes:
    """`reason` in UTF-8, at most MAX_REASON bytes, never half a character."""
    return reason.encode()[:MAX_REASON].decode(errors="ignore").encode()


def encode(frame: Control) -> bytes:
    """The whole frame as bytes.

    Raises:
        ValueError: a number in it does not fit.
    """
    body = frame.body()
    return varint(frame.TYPE) + varint(len(body)) + body


def stream_header(stream: int, offset: int, length: int) -> bytes:
    """What precedes `length` bytes of data in a STREAM frame."""
    body = varint(stream) + varint(offset)
    return b"\x1a" + varint(len(body) + length) + body


def run_header(stream: int, offset: int) -> bytes:
    """What precedes the data of a run."""
    return varint(stream) + varint(offset)


def opening(protocol: str, priority: int) -> bytes:
    """The first bytes of a stream.

    Raises:
        ValueError: the name is empty or longer than 255 bytes of UTF-8.
    """
    name = protocol.encode()
    if not 0 < len(name) <= MAX_PROTOCOL_NAME:
        raise ValueError(f"a protocol's name has 1 to {MAX_PROTOCOL_NAME} bytes of UTF-8, not {len(name)}")
    return bytes((priority, len(name))) + name


class FrameReader:
    """Finds frames in a byte stream, however it is cut.

    Feed it with `receive_data`; it returns what is complete. The data of STREAM frames is handed over as it arrives,
    so nothing is buffered but the start of one frame: at most MAX_DATAGRAM + 16 bytes (TCP) or MAX_CONTROL_BODY + 16
    bytes (QUIC's control stream, `stream_data=False`).

    Attributes:
        remaining: how many bytes of data the STREAM frame at hand still has.
    """

    def __init__(self, *, stream_data: bool) -> None:
        self._longest = _LONGEST if stream_data else _LONGEST_ON_CONTROL_STREAM
        self._pending = b""
        self._stream = 0
        self._offset = 0
        self.remaining = 0

    def receive_data(self, data: bytes) -> list[Event]:
        """The events in `data`, in order; a partial frame is kept for the next call.

        Raises:
            ProtocolViolation: malformed, too long, unknown and mandatory, or not allowed on this transport. The
                reader must not be used again.
        """
        events: list[Event] = []
        position = 0
        if self._pending:
            data = self._pending + data
            self._pending = b""
        end = len(data)
        while position < end:
            if self.remaining:
                part = data[position : position + self.remaining]
                events.append(StreamData(self._stream, self._offset, part))
                self._offset += len(part)
                self.remaining -= len(part)
                position += len(part)
                continue
            try:
                kind, body = read_varint(data, position)
                length, body = read_varint(data, body)
            except IndexError:
                break
            if length > self._longest.get(kind, MAX_CONTROL_BODY):
                raise ProtocolViolation(CloseCode.FRAME_ERROR, f"a frame of type {kind:#x} has {length} bytes")
            if kind == _STREAM:
                try:
                    self._stream, start = read_varint(data, body)
                    self._offset, start = read_varint(data, start)
                except IndexError:
                    if body + length <= end:
                        raise ProtocolViolation(CloseCode.FRAME_ERROR, "STREAM is cut short") from None
                    break
                if start > body + length:
                    raise ProtocolViolation(CloseCode.FRAME_ERROR, "STREAM is cut short")
                self.remaining = body + length - start
                position = start
                continue
            if body + length > end:
                break
            parse = _PARSERS.get(kind)
            if parse is not None:
                events.append(_parsed(kind, parse, data[body : body + length]))
            elif kind % 2 == 0:
                raise ProtocolViolation(CloseCode.FRAME_ERROR, f"unknown frame type {kind:#x}")
            position = body + length
        self._pending = data[position:]
        return events


_Parser = Callable[[bytes], tuple[Control, int]]
"""Makes a frame of a body and tells where in the body it ends."""


def _parsed(kind: int, parse: _Parser, body: bytes) -> Control:
    try:
        frame, end = parse(body)
    except (IndexError, struct.error):
        raise ProtocolViolation(CloseCode.FRAME_ERROR, f"{Type(kind).name} is cut short") from None
    if end != len(body):
        raise ProtocolViolation(CloseCode.FRAME_ERROR, f"{Type(kind).name} has {len(body) - end} surplus bytes")
    return frame


def _integers(body: bytes, start: int, count: int) -> tuple[list[int], int]:
    values = []
    for _ in range(count):
        value, start = read_varint(body, start)
        values.append(value)
    return values, start


def _hello(body: bytes) -> tuple[Control, int]:
    values, end = _integers(body, 32, 5)
    hello = Hello(*struct.unpack_from("!QQQQ", body), *values)
    _check_identity(hello)
    if bool(hello.yours) is not bool(hello.your_process):
        raise ProtocolViolation(CloseCode.FRAME_ERROR, "HELLO that knows our incarnation or our process, not both")
    return hello, end


def _accept(body: bytes) -> tuple[Control, int]:
    values, end = _integers(body, 24, 4)
    accept = Accept(*struct.unpack_from("!QQQ", body), *values)
    _check_identity(accept)
    return accept, end


def _check_identity(frame: Hello | Accept) -> None:
    name = frame.TYPE.name
    if not frame.mine or not frame.process:
        raise ProtocolViolation(CloseCode.FRAME_ERROR, f"{name} without an incarnation or process")
    if frame.streams < MINIMUM_STREAMS or frame.window < MINIMUM_WINDOW:
        raise ProtocolViolation(CloseCode.FRAME_ERROR, f"{name} grants less than the minimum")


def _close(body: bytes) -> tuple[Control, int]:
    code, end = read_varint(body, 0)
    return Close(code, body[end:].decode(errors="replace")), len(body)


def _numbers(make: Callable[..., Control], count: int) -> _Parser:
    """For a body of `count` integers."""

    def parse(body: bytes) -> tuple[Control, int]:
        values, end = _integers(body, 0, count)
        return make(*values), end

    return parse


def _number(make: Callable[[int], Control]) -> _Parser:
    """For a body of one."""

    def parse(body: bytes) -> tuple[Control, int]:
        value, end = read_varint(body, 0)
        return make(value), end

    return parse


def _nonce(make: Callable[[int], Control]) -> _Parser:
    """For a body of eight bytes."""
    return lambda body: (make(struct.unpack_from("!Q", body)[0]), 8)


# Tables, because a peer may send a hundred thousand small frames in one go. `int` spares an Enum's attribute look-ups.
_STREAM: Final = int(Type.STREAM)
_LONGEST: Final[dict[int, int]] = {Type.STREAM: MAX_STREAM_BODY, Type.DATAGRAM: MAX_DATAGRAM}
_LONGEST_ON_CONTROL_STREAM: Final[dict[int, int]] = {Type.STREAM: -1, Type.DATAGRAM: -1}
"""Neither belongs there, whatever its length."""
_PARSERS: Final[dict[int, _Parser]] = {
    Type.HELLO: _hello,
    Type.ACCEPT: _accept,
    Type.WINDOW: _numbers(Window, 3),
    Type.STREAMS: _number(Streams),
    Type.FIN: _numbers(Fin, 2),
    Type.RESET: _numbers(Reset, 3),
    Type.STOP: _numbers(Stop, 2),
    Type.GONE: _number(Gone),
    Type.PING: _nonce(Ping),
    Type.PONG: _nonce(Pong),
    Type.SYNC: lambda _: (Sync(), 0),
    Type.RETIRE: lambda _: (Retire(), 0),
    Type.CLOSE: _close,
    Type.DATAGRAM: lambda body: (Datagram(body), len(body)),
}
