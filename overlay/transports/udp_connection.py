"""A raw UDP connection as the session sees it.

Unlike QUIC's, its stream pieces come in any order and carry the session's own stream ids and offsets, so nothing is
kept here: a piece that has arrived is a piece that is handed over. Control frames are bytes of one ordered stream.
"""

import asyncio
import errno
from collections.abc import Container
from typing import TYPE_CHECKING, Final, cast

from overlay.addresses import Address
from overlay.errors import DatagramTooLarge, HandshakeError
from overlay.identity import PeerId
from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import Close, FrameReader, ProtocolViolation
from overlay.protocol.udp.connection import ControlData, Datagram, StreamPiece
from overlay.transports.base import ClosedBy, CloseReason, Connection, ConnectionHandler, Role
from overlay.transports.lazy_timer import clock

if TYPE_CHECKING:
    from overlay.transports.udp_driver import Driver

TURN: Final = 120 * 1024
"""Stream bytes that are taken and sent in one turn of the loop, about 0.4 ms of work: then others have theirs, above
all the acknowledgements that have arrived meanwhile. All of them are sealed before the first one leaves. They fill two
GSO sends with their headers: 128 KiB would be a third one, of a few packets, each time."""


class UdpLink(Connection):
    """One authenticated raw UDP connection.

    Attributes:
        reason: why it ended; None while it lives.
    """

    transport = "udp"

    def __init__(self, driver: "Driver", peer_id: PeerId, role: Role, handler: ConnectionHandler | None) -> None:
        super().__init__(
            peer_id=peer_id,
            remote=Address.from_sockaddr("udp", driver.remote),
            local=driver.local_address(),
            role=role,
            # An acceptor learns its handler from the connection; it is set before the first event.
            handler=cast("ConnectionHandler", handler),
        )
        self._driver = driver
        self._core = driver.core
        self.reason: CloseReason | None = None
        self._reader = FrameReader(stream_data=False)
        self._taken = 0
        """Stream bytes since the last flush."""

    @property
    def is_closed(self) -> bool:
        """Whether `close` or `abort` was called, or the connection has ended by itself."""
        return self.reason is not None

    @property
    def max_datagram_size(self) -> int:
        """The longest datagram that fits into a packet of its own, in bytes; it grows with what the path carries."""
        return self._core.max_datagram_size

    @property
    def rtt(self) -> float | None:
        """Smoothed round-trip time in seconds (RFC 9002 section 5.3)."""
        return self._core.rtt

    @property
    def rtt_min(self) -> float | None:
        """The least round-trip time of this path, in seconds (RFC 9002 section 5.2)."""
        return self._core.rtt_min

    @property
    def probe_timeout(self) -> float | None:
        """In seconds, without backoff (RFC 9002 section 6.2.1)."""
        return self._core.probe_timeout

    @property
    def mtu(self) -> int:
        """Bytes of the largest datagram that the path is known to carry (RFC 8899)."""
        return self._core.mtu

    @property
    def congestion_window(self) -> int:
        """Bytes that may be in flight."""
        return self._core.congestion_window

    @property
    def loss(self) -> float:
        """The share of the packets sent so far that were lost."""
        return self._core.loss

    def last_progress(self) -> float:
        """See `Connection.last_progress`: by our own acknowledgements."""
        return self._core.last_progress(clock())

    def sendable(self) -> int:
        """How many stream bytes it takes now: what could leave, but no more than one turn's work."""
        if self.is_closed:
            return 0
        return min(self._core.sendable(clock()), TURN - self._taken)

    @property
    def is_full(self) -> bool:
        """Whether a sender that has more to send has been stopped by `sendable`."""
        return bool(self._taken) and self.sendable() <= 0

    def send_frame(self, frame: bytes) -> None:
        """Queue a control frame, before everything else that waits."""
        if self.is_closed:
            return
        self.bytes_sent += len(frame)
        self._core.send_control(frame)

    def send_stream(self, stream: int, offset: int, data: bytes | memoryview, *, idle: bool) -> None:  # noqa: ARG002 - a piece needs no end
        """Queue a piece of a stream."""
        if self.is_closed:
            return
        size = len(data)
        self.bytes_sent += size
        self._taken += size
        self._core.send_stream(stream, offset, data)

    def send_datagram(self, data: bytes) -> bool:
        """Queue a datagram; False when too many wait.

        Raises:
            DatagramTooLarge: it is longer than `max_datagram_size`.
        """
        if len(data) > self.max_datagram_size:
            raise DatagramTooLarge(len(data), self.max_datagram_size)
        if self.is_closed or not self._core.send_datagram(data):
            return False
        self.bytes_sent += len(data)
        return True

    def datagram_room(self) -> int:
        """What could leave now and 16 KiB in reserve."""
        return 0 if self.is_closed else self._core.datagram_room(clock())

    def flush(self) -> None:
        """Send what is queued; within a wake-up of the socket that happens once, at its end."""
        if not self.is_closed:
            self._driver.flush()

    def network_changed(self, lost: Container[str]) -> bool:
        """See `Connection.network_changed`: either side may move."""
        if not self.is_closed and self._driver.leave(lost):
            self._core.local_address_changed(clock())
            self.flush()
        return True

    def flushed(self) -> None:
        """The driver has sent what may leave now: another turn's work can be taken."""
        self._taken = 0

    def close(self, code: CloseCode, reason: str = "") -> None:
        """Send what congestion control lets go, then CLOSE with `code` and `reason`."""
        if self.is_closed:
            return
        self._driver.flush_now()
        if self.reason is None:
            self._finish(closed := CloseReason(ClosedBy.US, code, reason))
            asyncio.get_running_loop().call_soon(self.handler.closed, self, closed)

    def abort(self) -> None:
        """Forget it at once; the peer will notice by silence, or by a stateless reset if it sends something."""
        if self.reason is not None:
            return
        self.reason = CloseReason(ClosedBy.US, CloseCode.NO_ERROR, "aborted")
        self._driver.forget()
        asyncio.get_running_loop().call_soon(self.handler.closed, self, self.reason)

    def discard(self) -> None:
        """Close it without telling the handler, which has never seen it: its dial was cancelled."""
        if self.reason is None:
            self._finish(CloseReason(ClosedBy.US, CloseCode.LOST_RACE))

    def ended(self, reason: CloseReason) -> None:
        """The driver found that it is over; tell the handler."""
        if self.reason is None:
            self.reason = reason
            self.handler.closed(self, reason)

    def event_received(self, event: StreamPiece | ControlData | Datagram) -> None:
        """Hand what came over to the handler; a violation closes the connection."""
        data = event.data if isinstance(event.data, bytes) else bytes(event.data)
        self.bytes_received += len(data)
        if isinstance(event, StreamPiece):
            self.handler.stream_received(self, event.stream, event.offset, data)
        elif isinstance(event, Datagram):
            self.handler.datagram_received(self, data)
        else:
            try:
                self._control_received(data)
            except ProtocolViolation as violation:
                self._finish(closed := CloseReason(ClosedBy.US, violation.code, violation.reason))
                self.handler.closed(self, closed)

    def _control_received(self, data: bytes) -> None:
        for frame in self._reader.receive_data(data):
            if isinstance(frame, Close):
                raise ProtocolViolation(CloseCode.FRAME_ERROR, "CLOSE on a control stream")
            # The reader lets neither STREAM nor DATAGRAM through here, so this is a control frame.
            self.handler.frame_received(self, frame)  # type: ignore[arg-type]
            if self.is_closed:
                return

    def _finish(self, reason: CloseReason) -> None:
        self.reason = reason
        self._core.close(CloseCode(reason.code), reason.reason)
        self._driver.flush_now()


def handshake_error(reason: CloseReason, cause: Exception | None = None) -> Exception:
    """What to tell a dialler of a handshake that has ended."""
    if isinstance(cause, HandshakeError):
        return cause
    if reason.by is ClosedBy.NETWORK and reason.code in {CloseCode.HANDSHAKE_TIMEOUT, CloseCode.SILENT}:
        return TimeoutError(errno.ETIMEDOUT, reason.reason)
    code = CloseCode(reason.code) if reason.code in set(CloseCode) else CloseCode.REFUSED
    who = "the peer broke off" if reason.by is ClosedBy.PEER else "we broke off"
    error = HandshakeError(f"{who} the handshake: {reason.reason or code.name}", code)
    error.__cause__ = cause
    return error
