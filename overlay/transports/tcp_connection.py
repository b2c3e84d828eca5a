"""One TCP connection after its handshake: our frames inside TLS, on a socket driven by two callbacks.

**Little is kept below us.** What TLS has encrypted and the kernel has taken can be overtaken by nothing. So the
kernel takes no more than TCP_NOTSENT_LOWAT beyond what is in flight, one batch of 64 KiB is encrypted at a time, and
stream bytes wait in the session: `sendable` is a budget that starts anew whenever poll says that the kernel has
room. A control frame that comes now is encrypted before all that waits. On a slow path all three are smaller, as 64 KiB
are 6 s of a modem's time: they follow the rate that the kernel sees (`_measure`).

**Life.** OPEN -> CLOSING: we said CLOSE and close_notify, and wait a moment for the peer to hang up, because a
socket that is closed with unread bytes sends a reset, which can destroy the CLOSE. Any state -> CLOSED: the socket
is gone. The handler hears of the end once, on leaving OPEN.
"""

import asyncio
import logging
import math
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import ClassVar

from OpenSSL import SSL

from overlay.addresses import Address
from overlay.errors import DatagramTooLarge
from overlay.identity import PeerId
from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import (
    Close,
    Datagram,
    FrameReader,
    ProtocolViolation,
    StreamData,
    encode,
    stream_header,
)
from overlay.transports import tls
from overlay.transports.base import ClosedBy, CloseReason, Connection, ConnectionHandler, Role
from overlay.transports.sockets import tcp_info

MAX_DATAGRAM_SIZE = 65_000
"""Bytes; with the frame's header it stays below 64 KiB, one batch."""
RECEIVE = 256 * 1024
"""Bytes for one read of the socket."""

_LOG = logging.getLogger("overlay.tcp")
_BATCH = 64 * 1024
"""Bytes for one send of OpenSSL and of the socket. Measured: 64 KiB 1,545 MB/s, 256 KiB 613 (caches), 4 KiB 336."""
_BUDGET = 256 * 1024
"""Stream bytes taken between two reports of room at most: a quarter of a millisecond at 1 GB/s, so that bytes of
another stream with a higher priority wait for no more ..."""
_BUDGET_SECONDS = 0.004
"""... and no more than the path carries in this time: enough for the loop to come round and fetch more."""
_LEAST_BUDGET = 4 * 1024
"""Bytes; poll reports room when half of it is left, a full segment."""
_MOST_UNSENT = 128 * 1024
"""For TCP_NOTSENT_LOWAT: the least with which one stream fills a fast link."""
_MEASURE_INTERVAL = 0.01
"""Seconds between two looks at the path's rate, which cost a system call."""
_CONTROL_LIMIT = {Role.DIALER: 4 * 1024 * 1024, Role.ACCEPTOR: 256 * 1024}
"""Bytes of queued control frames and unsent ciphertext: a peer that makes us answer and never reads is cut off, one
that dialled us sooner, as keys cost nothing. WINDOWs of 2,048 streams are 40 KiB."""
_DATAGRAM_LIMIT = 256 * 1024
"""Bytes of queued datagrams; beyond it they are dropped, which is what a datagram is for."""
_RECEIVES_PER_WAKEUP = 2
"""Bounds how long one fast peer keeps the loop from the others: 512 KiB of stream bytes, half a millisecond."""
_TURN = 0.002
"""Seconds after which other work of the loop goes first: 512 KiB can also be 262,144 frames of two bytes."""
_SLICE = 4 * 1024
"""Bytes that are parsed before the clock is looked at, beside the rest of a STREAM frame: up to 2,048 frames."""
_GOODBYE = 2.0
"""Seconds to wait for the peer to hang up after our CLOSE: it has to travel there, and a FIN back."""
_MINIMUM_TIMEOUT = 0.2
"""Seconds: what Linux adds to the round-trip time at least, as an acknowledgement may be delayed."""
_RECORD_OVERHEAD = 64
"""Bytes that a TLS record adds at most: header 5, content type 1, tag 16; the rest is room for a key update."""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class _State(Enum):
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class TcpConnection(Connection):
    """A TCP connection whose peer is known; made by `TcpTransport`.

    `bytes_sent` and `bytes_received` count what is inside TLS, the frames' headers included.

    Args:
        sock: connected and non-blocking; owned from here on.
        ssl: its handshake is over, and the peer's key is `peer_id`.
        backlog: ciphertext of the handshake that the kernel has not taken yet.
        buffer: scratch space for one read, shared with others.
        ended: called when the socket is closed.
    """

    transport: ClassVar[str] = "tcp"

    def __init__(
        self,
        *,
        peer_id: PeerId,
        remote: Address,
        role: Role,
        handler: ConnectionHandler,
        sock: socket.socket,
        ssl: SSL.Connection,
        backlog: bytes | memoryview,
        buffer: memoryview,
        ended: Callable[["TcpConnection"], None],
    ) -> None:
        self._sock = sock
        local = Address.from_sockaddr("tcp", self._sock.getsockname())
        super().__init__(peer_id=peer_id, remote=remote, local=local, role=role, handler=handler)
        self._loop = asyncio.get_running_loop()
        self._ssl = ssl
        self._ended = ended
        self._buffer = buffer
        self._reader = FrameReader(stream_data=True)
        self._state = _State.OPEN
        self._behind = True
        """OpenSSL may hold what no poll sees: what came together with the handshake, or was too much for one turn."""
        self._heard = self._progress = time.monotonic()
        self._delivered = 0
        self._goodbye: asyncio.TimerHandle | None = None
        self._control: list[bytes] = []
        self._control_size = 0
        self._datagrams: list[bytes] = []
        self._datagram_size = 0
        self._bulk: deque[tuple[bytes, bytes | memoryview]] = deque()
        self._rest: bytes | memoryview = b""
        """Of a frame whose beginning is encrypted: it goes before everything."""
        self._backlog = backlog
        self._handed = 0
        self._budget = _BUDGET
        self._measured_at = -math.inf
        self._watching = False
        self._mute = False

    def start(self) -> None:
        """Begin to read. The first event comes in a later turn of the loop."""
        self._loop.add_reader(self._sock, self._on_readable)
        self._loop.call_soon(self._on_readable)
        if self._backlog:
            self._watch()

    @property
    def is_closed(self) -> bool:
        """Whether it is no longer open."""
        return self._state is not _State.OPEN

    @property
    def max_datagram_size(self) -> int:
        """65,000 bytes: TCP cuts as it likes."""
        return MAX_DATAGRAM_SIZE

    @property
    def rtt(self) -> float | None:
        """The kernel's smoothed round-trip time in seconds (TCP_INFO); None where it does not tell."""
        info = tcp_info(self._sock)
        return info.rtt if info is not None and info.rtt > 0 else None

    @property
    def rtt_min(self) -> float | None:
        """The least round-trip time that the kernel has seen lately, in seconds."""
        info = tcp_info(self._sock)
        return None if info is None else info.rtt_min

    @property
    def probe_timeout(self) -> float | None:
        """TCP's retransmission timeout in seconds (RFC 6298), which plays the part of QUIC's PTO.

        Without the backoff that the kernel's own value has: that one grows as fast as the silence that it is to judge.
        """
        info = tcp_info(self._sock)
        return None if info is None or not info.rtt else info.rtt + max(4 * info.variance, _MINIMUM_TIMEOUT)

    @property
    def mtu(self) -> int | None:
        """Bytes of the largest IP packet, as the kernel knows the path."""
        info = tcp_info(self._sock)
        return None if info is None else info.mtu

    @property
    def loss(self) -> float | None:
        """The share of the segments with data sent so far that were sent again."""
        info = tcp_info(self._sock)
        return None if info is None or not info.sent else min(1.0, info.repeated / info.sent)

    @property
    def congestion_window(self) -> int | None:
        """Bytes that may be in flight, by the kernel's count of segments."""
        info = tcp_info(self._sock)
        return None if info is None else info.congestion_window

    def last_progress(self) -> float:
        """See `Connection.last_progress`; as exact as it is asked often.

        Acknowledgements are not authenticated: who can forge them can also cut the connection.
        """
        info = tcp_info(self._sock)
        if info is None:
            return self._heard
        if not info.unacknowledged or info.delivered != self._delivered:
            self._delivered = info.delivered
            self._progress = max(self._heard, time.monotonic() - min(info.since_data, info.since_ack))
        return self._progress

    def sendable(self) -> int:
        """How many stream bytes it takes before poll has to say again that there is room."""
        if self._state is _State.OPEN:
            self._measure()
        return self._budget - self._handed if self._state is _State.OPEN else 0

    def send_frame(self, frame: bytes) -> None:
        """Queue a control frame, before all stream bytes that are not encrypted yet."""
        if self._state is not _State.OPEN:
            return
        self._control.append(frame)
        self._control_size += len(frame)
        self._check_bound()

    def send_stream(self, stream: int, offset: int, data: bytes | memoryview, *, idle: bool) -> None:  # noqa: ARG002
        """Queue a piece of a stream. `data` is not copied: it must not change any more."""
        if self._state is not _State.OPEN:
            return
        size = len(data)
        self._bulk.append((stream_header(stream, offset, size), data))
        self._handed += size
        if self._handed >= self._budget:
            self._watch()

    def send_datagram(self, data: bytes) -> bool:
        """Queue a datagram, before the stream bytes.

        Raises:
            DatagramTooLarge: it is longer than 65,000 bytes.
        """
        if len(data) > MAX_DATAGRAM_SIZE:
            raise DatagramTooLarge(len(data), MAX_DATAGRAM_SIZE)
        if self._state is not _State.OPEN or self._datagram_size + len(data) > _DATAGRAM_LIMIT:
            return False
        frame = encode(Datagram(data))
        self._datagrams.append(frame)
        self._datagram_size += len(frame)
        return True

    def datagram_room(self) -> int:
        """One batch, when the kernel has taken the one before: how much more it would take, only trying tells."""
        return _BATCH - self._datagram_size if self._state is _State.OPEN and not self._backlog else 0

    def flush(self) -> None:
        """Encrypt and send what is queued, as far as the kernel takes it; the rest follows by itself."""
        if self._state is _State.OPEN:
            self._pump()

    def close(self, code: CloseCode, reason: str = "") -> None:
        """Say CLOSE behind what is queued, then close_notify and FIN; the socket goes within 2 s."""
        if self._state is not _State.OPEN:
            return
        self._bulk.append((encode(Close(code, reason)), b""))
        self._state = _State.CLOSING
        self._goodbye = self._loop.call_later(_GOODBYE, self._reset)
        self._loop.call_soon(self.handler.closed, self, CloseReason(ClosedBy.US, code, reason))
        self._pump()

    def abort(self) -> None:
        """Reset the connection and drop what is queued."""
        self._reset()

    def _reset(self, reason: str = "aborted") -> None:
        if self._state is _State.CLOSED:
            return
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._end(CloseReason(ClosedBy.US, CloseCode.NO_ERROR, reason))

    def _end(self, reason: CloseReason) -> None:
        """Free everything; tell the handler in a later turn of the loop, as it may be our caller."""
        if self._state is _State.CLOSED:
            return
        was_open = self._state is _State.OPEN
        self._state = _State.CLOSED
        if self._goodbye is not None:
            self._goodbye.cancel()
        for remove in (self._loop.remove_reader, self._loop.remove_writer):
            # uvloop closes its handle when the socket polls as POLLERR, and then refuses the first of the two; both
            # are needed, or the next socket of this number would inherit the closed handle.
            with suppress(RuntimeError):
                remove(self._sock)
        self._sock.close()
        self._control.clear()
        self._datagrams.clear()
        self._bulk.clear()
        self._rest = b""
        self._backlog = b""
        self._ended(self)
        if was_open:
            self._loop.call_soon(self.handler.closed, self, reason)

    def _fail(self, error: Exception) -> None:
        """A bug, here or in the handler: this connection ends, and nothing else."""
        _LOG.error("%r failed", self, exc_info=error)
        if self._state is _State.OPEN:
            self.close(CloseCode.INTERNAL_ERROR)
        else:
            self._reset()

    # --- receiving

    def _on_readable(self) -> None:
        try:
            if self._state is _State.OPEN:
                self._receive()
            elif self._state is _State.CLOSING:
                self._discard()
        except Exception as error:  # noqa: BLE001 - a loop would log it and go on with a hole in the data
            self._fail(error)

    def _receive(self) -> None:
        end: CloseReason | None = None
        received = 0
        until = time.monotonic() + _TURN
        if self._behind and not self._deliver(until):
            return
        for _ in range(_RECEIVES_PER_WAKEUP):
            if self._behind:
                break
            try:
                size = self._sock.recv_into(self._buffer)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                end = CloseReason(ClosedBy.NETWORK, reason=f"the connection broke: {error.strerror}")
                break
            if not size:
                end = CloseReason(ClosedBy.NETWORK, reason="the connection was cut")
                break
            received += size
            self._ssl.bio_write(self._buffer[:size])
            if not self._deliver(until):
                return
            if size < RECEIVE:
                break
        if received:
            self._heard = time.monotonic()
        if end is not None:
            self._end(end)
            return
        if self._behind:
            self._loop.remove_reader(self._sock)
            self._loop.call_soon(self._resume)
        self._answer()
        self.handler.writable(self)
        self.flush()

    def _resume(self) -> None:
        """Go on after the others had their turn."""
        if self._state is not _State.CLOSED:
            # See `_end`; what has arrived is still read, and the end of it found.
            with suppress(RuntimeError):
                self._loop.add_reader(self._sock, self._on_readable)
            self._on_readable()

    def _deliver(self, until: float) -> bool:
        """Decrypt and hand over what is there, or what can be done `until` then; False when it ended the connection."""
        recv = self._ssl.recv
        reader = self._reader
        self._behind = True
        while self._behind:
            pieces: list[bytes] = []
            failure: SSL.Error | None = None
            # Joined: the session's work is per piece, and a copy is cheaper than four times as many of them.
            wanted = reader.remaining + _SLICE
            try:
                while wanted > 0:
                    pieces.append(recv(min(wanted, tls.RECORD)))
                    wanted -= len(pieces[-1])
            except SSL.WantReadError:
                self._behind = False
            except SSL.Error as error:
                failure = error
            if pieces and not self._hand_over(b"".join(pieces)):
                return False
            if failure is not None:
                self._tls_ended(failure)
                return False
            if time.monotonic() >= until:
                break
        return True

    def _hand_over(self, data: bytes) -> bool:
        handler = self.handler
        self.bytes_received += len(data)
        try:
            events = self._reader.receive_data(data)
        except ProtocolViolation as violation:
            self.close(violation.code, violation.reason)
            return False
        for event in events:
            if isinstance(event, StreamData):
                handler.stream_received(self, event.stream, event.offset, event.data)
            elif isinstance(event, Datagram):
                handler.datagram_received(self, event.data)
            elif isinstance(event, Close):
                self._end(CloseReason(ClosedBy.PEER, event.code, event.reason))
            else:
                handler.frame_received(self, event)
            if self._state is not _State.OPEN:
                return False
        return True

    def _tls_ended(self, error: SSL.Error) -> None:
        """An alert of the peer, or bytes that are not from it.

        Only so does a dialler learn that the acceptor would not have it: a TLS 1.3 client is done before the
        server has seen its certificate (RFC 8446 section 2).
        """
        if isinstance(error, SSL.ZeroReturnError):
            self._end(CloseReason(ClosedBy.PEER, reason="the peer hung up without a reason"))
            return
        if tls.is_alert(error):
            self._end(CloseReason(ClosedBy.PEER, CloseCode.UNAUTHENTICATED, tls.sentence(error)))
            return
        self._answer()
        self._end(CloseReason(ClosedBy.NETWORK, reason="the bytes were changed on the way"))

    def _answer(self) -> None:
        """Send what OpenSSL itself has to say after a read, such as a KeyUpdate (RFC 8446 section 4.6.3)."""
        if self._state is _State.OPEN and (answer := tls.drain(self._ssl, _BATCH)):
            self._transmit(answer)

    def _discard(self) -> None:
        try:
            if self._sock.recv_into(self._buffer):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            _LOG.debug("%r: the peer did not wait for our goodbye: %s", self, error)
        self._end(CloseReason(ClosedBy.US))

    # --- sending

    def _watch(self) -> None:
        if not self._watching and not self._mute:
            self._watching = True
            try:
                self._loop.add_writer(self._sock, self._on_writable)
            except RuntimeError:
                # The same handle: the peer's RST came first.
                self._end(CloseReason(ClosedBy.NETWORK, reason="the connection broke"))

    def _on_writable(self) -> None:
        try:
            self._handed = 0
            self._pump()
            if self._backlog:
                return
            if self._state is _State.OPEN:
                self.handler.writable(self)
                self.flush()
            if not self._backlog and self._handed < self._budget and self._state is not _State.CLOSED:
                self._watching = False
                self._loop.remove_writer(self._sock)
        except Exception as error:  # noqa: BLE001 - as for reading
            self._fail(error)

    def _measure(self) -> None:
        """Let what waits below the session follow the rate of the path: what may be in flight, per round trip.

        In powers of two, so that the kernel is seldom told. Where it says nothing of the path, the most has to do.
        """
        now = time.monotonic()
        if now < self._measured_at + _MEASURE_INTERVAL:
            return
        self._measured_at = now
        info = tcp_info(self._sock)
        if info is None or info.rtt <= 0:
            return
        wanted = info.congestion_window / info.rtt * _BUDGET_SECONDS
        budget = max(_LEAST_BUDGET, min(_BUDGET, 1 << int(wanted).bit_length()))
        if budget != self._budget:
            self._budget = budget
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                unsent = min(budget, _MOST_UNSENT)
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, unsent)
            if self._handed >= budget:
                # Whoever is told that there is no room now is told when there is.
                self._watch()

    def _pump(self) -> None:
        if self._backlog:
            backlog, self._backlog = self._backlog, b""
            self._transmit(backlog)
        while not self._backlog and not self._mute:
            batch = self._next_batch()
            if not batch:
                break
            try:
                self._ssl.send(batch)
            except SSL.Error as error:
                self._end(CloseReason(ClosedBy.NETWORK, reason=tls.sentence(error)))
                return
            self.bytes_sent += len(batch)
            self._drain(len(batch))
        if self._state is _State.CLOSING and not self._backlog and not self._mute:
            self._hang_up()

    def _next_batch(self) -> bytes:
        full = min(self._budget, _BATCH)
        parts: list[bytes | memoryview] = [self._rest]
        size = len(self._rest)
        self._rest = b""
        if self._control:
            parts += self._control
            size += self._control_size
            self._control.clear()
            self._control_size = 0
        if self._datagrams:
            parts += self._datagrams
            size += self._datagram_size
            self._datagrams.clear()
            self._datagram_size = 0
        while self._bulk and size < full:
            header, data = self._bulk.popleft()
            parts += (header, data)
            size += len(header) + len(data)
            excess = size - full
            if 0 < excess < len(data):
                # The batch is whole TLS records: a frame's last ten bytes would cost one of their own.
                parts[-1], self._rest = memoryview(data)[:-excess], memoryview(data)[-excess:]
        return b"".join(parts)

    def _drain(self, plain: int) -> None:
        records = plain // tls.RECORD + 2
        self._transmit(tls.drain(self._ssl, plain + records * _RECORD_OVERHEAD))

    def _transmit(self, data: bytes | memoryview) -> None:
        """Give ciphertext to the kernel; what it does not take waits, and nothing overtakes it."""
        if self._backlog:
            self._backlog = bytes(self._backlog) + data
            self._check_bound()
            return
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._hear_last_words(error)
            return
        if sent < len(data):
            self._backlog = memoryview(data)[sent:]
            self._watch()

    def _hang_up(self) -> None:
        self._mute = True
        try:
            self._ssl.shutdown()
            self._sock.send(tls.drain(self._ssl, _BATCH))
            self._sock.shutdown(socket.SHUT_WR)
        except (OSError, SSL.Error) as error:
            _LOG.debug("%r: the peer does not hear our goodbye: %s", self, error)
            self._end(CloseReason(ClosedBy.NETWORK))

    def _hear_last_words(self, error: OSError) -> None:
        """Sending failed; but what the peer sent before may still be there, with its CLOSE: read it."""
        self._mute = True
        self._backlog = b""
        self._control.clear()
        self._datagrams.clear()
        self._bulk.clear()
        self._rest = b""
        self._control_size = self._datagram_size = 0
        self._loop.call_soon(self._on_readable)
        reason = CloseReason(ClosedBy.NETWORK, reason=f"the connection broke: {error.strerror}")
        self._loop.call_soon(self._end, reason)

    def _check_bound(self) -> None:
        if self._control_size + len(self._backlog) > _CONTROL_LIMIT[self.role]:
            self._reset("the peer does not read")
