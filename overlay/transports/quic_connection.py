"""A QUIC connection as the session sees it: control frames on one stream, data in runs on others (`quic_runs`)."""

import asyncio
from collections.abc import Container
from typing import TYPE_CHECKING, Final, cast

from aioquic.quic.events import (
    DatagramFrameReceived,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)

from overlay.addresses import Address
from overlay.errors import DatagramTooLarge
from overlay.identity import PeerId
from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import Close, FrameReader, ProtocolViolation, clip
from overlay.transports.base import ClosedBy, CloseReason, Connection, ConnectionHandler, Role
from overlay.transports.quic_runs import ReceiveRuns, SendRuns

if TYPE_CHECKING:
    from overlay.transports.quic_driver import Driver

MAX_WAITING_DATAGRAMS: Final = 64
"""DATAGRAM frames that wait for the congestion window: 75 KB of 1200 bytes each, 570 KB where packets are jumbo frames;
no more than a late one is worth."""
MAX_CONTROL_BACKLOG: Final = 1024 * 1024
"""Bytes of control frames that a peer has not acknowledged: four times the credit that it grants us."""


class QuicLink(Connection):
    """One authenticated QUIC connection."""

    transport = "quic"

    def __init__(self, driver: "Driver", peer_id: PeerId, role: Role, handler: ConnectionHandler | None) -> None:
        super().__init__(
            peer_id=peer_id,
            remote=Address.from_sockaddr("quic", driver.remote),
            local=driver.local_address(),
            role=role,
            # An acceptor learns its handler from the connection; it is set before the first event.
            handler=cast("ConnectionHandler", handler),
        )
        self._driver = driver
        self._engine = driver.engine
        self._closed = False
        self._reader = FrameReader(stream_data=False)
        self._incoming = ReceiveRuns()
        self._outgoing = SendRuns(self._engine)

    @property
    def is_closed(self) -> bool:
        """Whether `close` or `abort` was called, or the connection has ended by itself."""
        return self._closed

    @property
    def max_datagram_size(self) -> int:
        """The longest datagram that fits into a packet of its own, in bytes."""
        return self._engine.max_datagram

    @property
    def rtt(self) -> float | None:
        """Smoothed round-trip time in seconds (RFC 9002 section 5.3)."""
        return self._engine.rtt

    @property
    def rtt_min(self) -> float | None:
        """The least round-trip time of this path, in seconds (RFC 9002 section 5.2)."""
        return self._engine.rtt_min

    @property
    def probe_timeout(self) -> float | None:
        """In seconds, without backoff (RFC 9002 section 6.2.1)."""
        return self._engine.probe_timeout

    @property
    def mtu(self) -> int:
        """Bytes of the largest datagram that it sends."""
        return self._engine.mtu

    @property
    def loss(self) -> float | None:
        """The share of the packets sent so far that were lost (RFC 9002 section 6.1)."""
        congestion = self._engine.congestion
        return congestion.lost / congestion.sent if congestion.sent else None

    @property
    def congestion_window(self) -> int:
        """Bytes that may be in flight (RFC 9002 section 7)."""
        return self._engine.congestion.congestion_window

    def last_progress(self) -> float:
        """See `Connection.last_progress`: by QUIC's acknowledgements."""
        return self._engine.last_progress

    def sendable(self) -> int:
        """How many stream bytes it takes now: what the congestion window has room for and a small reserve."""
        return 0 if self._closed else self._engine.room()

    def send_frame(self, frame: bytes) -> None:
        """Queue a control frame; the control stream is served before all runs."""
        if self._closed:
            return
        if self._engine.control_backlog > MAX_CONTROL_BACKLOG:
            self.close(CloseCode.FLOW_CONTROL_ERROR, "control frames are not read")
            return
        self.bytes_sent += len(frame)
        self._engine.send_control(frame)

    def send_stream(self, stream: int, offset: int, data: bytes | memoryview, *, idle: bool) -> None:
        """Queue a piece of a stream on its run; `idle` ends the run behind it."""
        if self._closed:
            return
        self.bytes_sent += len(data)
        self._outgoing.send(stream, offset, data, idle=idle)

    def send_datagram(self, data: bytes) -> bool:
        """Queue a DATAGRAM frame; False when too many wait (RFC 9221).

        Raises:
            DatagramTooLarge: it is longer than `max_datagram_size`.
        """
        if len(data) > self.max_datagram_size:
            raise DatagramTooLarge(len(data), self.max_datagram_size)
        if self._closed or self._engine.waiting_datagrams >= MAX_WAITING_DATAGRAMS:
            return False
        self.bytes_sent += len(data)
        self._engine.send_datagram_frame(data)
        return True

    def datagram_room(self) -> int:
        """What the congestion window has room for and 16 KiB in reserve."""
        if self._closed or self._engine.waiting_datagrams >= MAX_WAITING_DATAGRAMS:
            return 0
        return self._engine.datagram_room()

    def flush(self) -> None:
        """Send what is queued; within a wake-up of the socket that happens once, at its end."""
        if not self._closed:
            self._driver.flush()

    def network_changed(self, lost: Container[str]) -> bool:
        """See `Connection.network_changed`: only who has dialled may move (RFC 9000 section 9)."""
        if self.role is Role.ACCEPTOR:
            return super().network_changed(lost)
        if not self._closed and self._driver.leave(lost):
            # RFC 9000 section 9.5: who watches both networks shall not know that it is the same connection.
            self._engine.change_connection_id()
            self._engine.path_changed()
            self.flush()
        return True

    def close(self, code: CloseCode, reason: str = "") -> None:
        """Send what congestion control lets go, then CONNECTION_CLOSE with `code` and `reason`."""
        if self._closed:
            return
        self._driver.flush_now()
        if not self._closed:
            self._finish(code, reason)
            closed = CloseReason(ClosedBy.US, code, reason)
            asyncio.get_running_loop().call_soon(self.handler.closed, self, closed)

    def abort(self) -> None:
        """Forget it at once; the peer will notice by silence."""
        if self._closed:
            return
        self._closed = True
        self._driver.forget()
        closed = CloseReason(ClosedBy.US, CloseCode.NO_ERROR, "aborted")
        asyncio.get_running_loop().call_soon(self.handler.closed, self, closed)

    def discard(self) -> None:
        """Close it without telling the handler, which has never seen it: its dial was cancelled."""
        if not self._closed:
            self._finish(CloseCode.LOST_RACE, "")

    def handshake_error(self) -> Exception:
        """Why a connection that ended before its dial returned did so."""
        return self._engine.handshake_error()

    def ended(self, reason: CloseReason) -> None:
        """The driver found that it is over; tell the handler."""
        if not self._closed:
            self._closed = True
            self.handler.closed(self, reason)

    def event_received(self, event: QuicEvent) -> None:
        """Hand one event of aioquic over to the handler; a violation closes the connection."""
        try:
            match event:
                case StreamDataReceived():
                    self._data_received(event.stream_id, event.data, end=event.end_stream)
                case DatagramFrameReceived():
                    self.bytes_received += len(event.data)
                    self.handler.datagram_received(self, event.data)
                case StreamReset() if event.stream_id != self._engine.control_in:
                    self._incoming.forget(event.stream_id)
                case StreamReset() | StopSendingReceived():
                    # We never do either: what is not wanted any more, the session says in frames.
                    raise ProtocolViolation(CloseCode.STATE_ERROR, type(event).__name__)  # noqa: TRY301 - as below
        except ProtocolViolation as violation:
            self._finish(violation.code, violation.reason)
            self.handler.closed(self, CloseReason(ClosedBy.US, violation.code, violation.reason))

    def _data_received(self, quic_stream: int, data: bytes, *, end: bool) -> None:
        if quic_stream != self._engine.control_in:
            piece = self._incoming.receive(quic_stream, data, end=end)
            if piece is not None:
                stream, offset, data = piece
                self.bytes_received += len(data)
                self.handler.stream_received(self, stream, offset, data)
            return
        self.bytes_received += len(data)
        for frame in self._reader.receive_data(data):
            if isinstance(frame, Close):
                raise ProtocolViolation(CloseCode.FRAME_ERROR, "CLOSE on a control stream")
            # The reader lets neither STREAM nor DATAGRAM through here, so this is a control frame.
            self.handler.frame_received(self, frame)  # type: ignore[arg-type]
            if self._closed:
                return
        if end:
            raise ProtocolViolation(CloseCode.STATE_ERROR, "the control stream was ended")

    def _finish(self, code: CloseCode, reason: str) -> None:
        self._closed = True
        self._engine.close(error_code=code, reason_phrase=clip(reason).decode())
        self._driver.flush_now()
