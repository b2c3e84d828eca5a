"""A QUIC connection as the session sees it, and the driver that moves its bytes.

A `Driver` ties one engine, aioquic's sans-I/O connection, to the shared socket, the loop's clock and the table of
connection ids. It exists from the first datagram on. A `QuicLink`, the `Connection` of the session, is made only when
the peer has proven its key. The order within one wake-up is always the same: feed all datagrams, hand over all
events, call `writable` once, send once.

Whatever aioquic raises ends this one connection: `Driver` catches it, tells the handler, and forgets the engine.
"""

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final, Protocol, cast

from aioquic.quic.events import (
    ConnectionIdRetired,
    DatagramFrameReceived,
    HandshakeCompleted,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)

from overlay.addresses import Address
from overlay.errors import DatagramTooLarge, HandshakeError
from overlay.identity import PeerId
from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import Close, FrameReader, ProtocolViolation, clip
from overlay.transports.base import ClosedBy, CloseReason, Connection, ConnectionHandler, Role
from overlay.transports.quic_runs import ReceiveRuns, SendRuns
from overlay.transports.udp_socket import Local, SocketAddress, UdpSocket

if TYPE_CHECKING:
    from overlay.transports.quic import Engine

logger = logging.getLogger(__name__)

clock = time.monotonic
"""The engines' clock. asyncio's loop has the same; uvloop's counts the same time in whole ms and stands still within
a turn, which is too coarse for aioquic's pacer: it would let 16 packets go in each ms."""

MAX_WAITING_DATAGRAMS: Final = 64
"""DATAGRAM frames that wait for the congestion window: 75 KB, and no more than a late one is worth."""
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
    def probe_timeout(self) -> float | None:
        """In seconds, without backoff (RFC 9002 section 6.2.1)."""
        return self._engine.probe_timeout

    @property
    def mtu(self) -> int:
        """Bytes of the largest datagram that it sends: those of QUIC's smallest, as it does not look for larger ones."""
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
        """How many stream bytes it takes now: what the congestion window has room for and 64 KiB in reserve."""
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

    def flush(self) -> None:
        """Send what is queued; within a wake-up of the socket that happens once, at its end."""
        if not self._closed:
            self._driver.flush()

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


class Handshake(Protocol):
    """What becomes of a driver whose handshake is under way; exactly one of the first two is called."""

    def completed(self, driver: "Driver") -> QuicLink | None:
        """The TLS handshake is done: check `engine.proven`; None when the engine was closed instead."""

    def failed(self, error: Exception) -> None:
        """It will not be done."""

    def forgotten(self, driver: "Driver") -> None:
        """The driver is no more."""


class Driver:
    """Moves datagrams, events and time between an engine and the world.

    Args:
        engine: aioquic's connection, for a dial already told to connect.
        udp: the socket it speaks through.
        remote: where the peer was when it began.
        local: our address that the peer's datagrams come to, if known.
        routes: connection id -> driver, shared by all of a transport; the driver keeps its own entries.
        handshake: told how the handshake ends.
    """

    def __init__(
        self,
        engine: "Engine",
        udp: UdpSocket,
        remote: SocketAddress,
        local: Local | None,
        routes: dict[bytes, "Driver"],
        handshake: Handshake,
    ) -> None:
        self.engine = engine
        self.remote = remote
        self.link: QuicLink | None = None
        self.refused: OSError | None = None
        self._udp = udp
        self._local = local
        self._routes = routes
        self._handshake: Handshake = handshake
        self._handshaking = True
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._busy = False
        self._ids: set[bytes] = set()
        self._ids_issued = 0
        self._goodbye: list[bytes] = []
        self._late = 0
        self.is_forgotten = False
        self._register_ids()

    def local_address(self) -> Address | None:
        """Our own address on this connection, if known."""
        address = self._udp.local_address(self._local, self.remote)
        return None if address is None else address.with_transport("quic")

    def add_id(self, connection_id: bytes) -> None:
        """Route datagrams to this connection id here too: the one that a client drew for its first packets."""
        self._routes[connection_id] = self
        self._ids.add(connection_id)

    def receive(self, data: bytes, remote: SocketAddress, local: Local | None) -> None:
        """Feed one datagram; `batch_ended` must follow."""
        if self.is_forgotten:
            return
        if self._goodbye:
            self._repeat_goodbye()
            return
        heard = self.engine.packets_received
        try:
            self.engine.receive_datagram(data, remote, clock())
        except Exception as error:  # noqa: BLE001 - whatever aioquic raises ends this connection only
            self._crash(error)
            return
        if self.engine.packets_received != heard:
            # Only a packet that decrypted may move us: anybody can send us other ones.
            self._local = local

    def batch_ended(self) -> None:
        """Hand over what the fed datagrams brought, and answer."""
        if self.is_forgotten:
            return
        self._busy = True
        try:
            self._dispatch()
        except Exception as error:  # noqa: BLE001 - the same, and a handler that fails must not stop the others
            self._crash(error)
        finally:
            self._busy = False
        self.flush()

    def flush(self) -> None:
        """Send what is queued, unless that will be done at the end of this wake-up anyway."""
        if not self._busy:
            self.flush_now()

    def flush_now(self) -> None:
        """Send what is queued and set the timer."""
        if self.is_forgotten:
            return
        try:
            datagrams = self.engine.datagrams_to_send(clock())
        except Exception as error:  # noqa: BLE001 - the same
            self._crash(error)
            return
        if datagrams:
            self._send(datagrams)
            if self.engine.is_closing:
                self._goodbye = [data for data, _ in datagrams]
        self._register_ids()
        self._arm()

    def fail(self, error: Exception, code: CloseCode) -> None:
        """Give a handshake up: tell the peer and whoever waits for it."""
        self.engine.close(error_code=code, reason_phrase=clip(str(error)).decode())
        self.flush_now()
        self._end_handshake(error)

    def unreachable(self, udp: UdpSocket, remote: SocketAddress, error: OSError) -> None:
        """ICMP says that nobody is at `remote`: give up a dial that has heard nothing from there.

        Anybody may have sent that, so it is worth nothing once a packet of the peer was decrypted.
        """
        if udp is self._udp and remote == self.remote and self._handshaking and not self.engine.packets_received:
            self.forget()
            self._end_handshake(error)

    def forget(self) -> None:
        """Free everything at once."""
        if self.is_forgotten:
            return
        self.is_forgotten = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection_id in self._ids:
            self._routes.pop(connection_id, None)
        self._ids.clear()
        self.engine.release()
        self._handshake.forgotten(self)

    def _dispatch(self) -> None:
        engine = self.engine
        link = self.link
        if link is None:
            if not self._handshaking:
                return
            if engine.is_closing:
                # Nothing is read from an engine that broke off its handshake: what it still holds was said by
                # somebody who has proven nothing.
                self._end_handshake(engine.handshake_error())
                return
            while (event := engine.next_event()) is not None and not isinstance(event, HandshakeCompleted):
                pass
            if event is None:
                return
            link = self.link = self._handshake.completed(self)
            self._handshaking = False
            if link is None:
                return
        while not link.is_closed and (event := engine.next_event()) is not None:
            if isinstance(event, ConnectionIdRetired):
                self._routes.pop(event.connection_id, None)
                self._ids.discard(event.connection_id)
            else:
                link.event_received(event)
        if link.is_closed:
            return
        reason = engine.close_reason()
        if reason is not None:
            link.ended(reason)
            return
        peer: SocketAddress = engine.get_peer_address() or self.remote
        if peer != self.remote:
            self.remote = peer
            link.remote = Address.from_sockaddr("quic", peer)
        link.handler.writable(link)

    def _end_handshake(self, error: Exception) -> None:
        if self._handshaking:
            self._handshaking = False
            self._handshake.failed(error)

    def _send(self, datagrams: list[tuple[bytes, SocketAddress]]) -> None:
        remote = datagrams[0][1]
        if all(address is remote for _, address in datagrams):
            self.refused = self._udp.send([data for data, _ in datagrams], remote, self._local)
            return
        for data, address in datagrams:
            self.refused = self._udp.send((data,), address, self._local)

    def _repeat_goodbye(self) -> None:
        # RFC 9000 section 10.2.1: whoever is closing answers progressively fewer packets: here the first, second,
        # fourth, eighth and so on.
        self._late += 1
        if self._late & (self._late - 1) == 0:
            self._udp.send(self._goodbye, self.remote, self._local)

    def _register_ids(self) -> None:
        if self.engine.ids_issued != self._ids_issued:
            self._ids_issued = self.engine.ids_issued
            for connection_id in self.engine.connection_ids():
                self.add_id(connection_id)

    def _arm(self) -> None:
        """Make sure that the timer does not fire too late; one that fires too early arms itself again."""
        at = self.engine.get_timer()
        if at is None:
            if self.engine.is_closing:
                self.forget()
            return
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, at - clock()), self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        fired_at, now = self._timer_at, clock()
        at = self.engine.get_timer()
        if at is not None and at > max(now, fired_at):
            self._arm()
            return
        try:
            # The loop's clock may stand a tick before the deadline that it woke us for.
            self.engine.handle_timer(max(now, fired_at))
        except Exception as error:  # noqa: BLE001 - the same
            self._crash(error)
            return
        self.batch_ended()

    def _crash(self, error: Exception) -> None:
        # Strangers must not be able to fill a log; whoever dials is told by the error.
        level = logging.DEBUG if self.link is None else logging.WARNING
        logger.log(level, "a QUIC connection with %s ended by an error", self.remote, exc_info=error)
        try:
            self.engine.close(error_code=CloseCode.INTERNAL_ERROR)
            self._send(self.engine.datagrams_to_send(clock()))
        except Exception as second:  # noqa: BLE001 - a goodbye is a courtesy
            logger.debug("no goodbye was sent: %s", second)
        self.forget()
        self._end_handshake(HandshakeError(f"internal error: {error!r}", CloseCode.INTERNAL_ERROR))
        if self.link is None:
            return
        try:
            self.link.ended(CloseReason(ClosedBy.NETWORK, CloseCode.INTERNAL_ERROR, repr(error)))
        except Exception:
            # Nobody above can do more about it, and the other connections wait for their turn.
            logger.exception("the handler of %s failed at its end", self.link)
