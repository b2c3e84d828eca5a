"""QUIC's driver: moves what aioquic's engine says and hears; see `packet_driver` for what all drivers do.

It exists from the first datagram on. A `QuicLink` is made only when the peer has proven its key.
"""

import errno
from typing import TYPE_CHECKING, ClassVar, Protocol

from aioquic.quic.events import ConnectionIdRetired, HandshakeCompleted

from overlay.addresses import Address
from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import clip
from overlay.transports import packet_driver
from overlay.transports.lazy_timer import clock
from overlay.transports.packet_driver import PacketDriver
from overlay.transports.quic_connection import QuicLink
from overlay.transports.udp_socket import Local, SocketAddress, UdpSocket

if TYPE_CHECKING:
    from overlay.transports.quic import Engine


class Handshake(packet_driver.Outcome, Protocol):
    """What becomes of a driver whose handshake is under way; `completed` or `failed` is called once."""

    def completed(self, driver: "Driver") -> QuicLink | None:
        """The TLS handshake is done: check `engine.proven`; None when the engine was closed instead."""


class Driver(PacketDriver[QuicLink]):
    """Moves datagrams, events and time between an engine and the world.

    Args:
        engine: aioquic's connection, for a dial already told to connect.
        udp: the socket it speaks through.
        remote: where the peer was when it began.
        local: our address that the peer's datagrams come to, if known.
        routes: connection id -> driver, shared by all of a transport; the driver keeps its own entries.
        handshake: told how the handshake ends.
    """

    transport: ClassVar[str] = "quic"

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
        super().__init__(udp, remote, local, handshake)
        self._routes = routes
        self._handshake: Handshake = handshake
        self._ids: set[bytes] = set()
        self._ids_issued = 0
        self._goodbye: list[bytes] = []
        self._late = 0
        self._register_ids()

    def add_id(self, connection_id: bytes) -> None:
        """Route datagrams to this connection id here too: the one that a client drew for its first packets."""
        self._routes[connection_id] = self
        self._ids.add(connection_id)

    def receive(self, data: bytes, segment: int, remote: SocketAddress, local: Local | None) -> None:
        """Feed datagrams of `segment` bytes that stand in `data` one by one; `batch_ended` must follow."""
        if self.is_forgotten:
            return
        if self._goodbye:
            self._repeat_goodbye()
            return
        heard = self.engine.packets_received
        try:
            self.engine.receive_burst(data, segment, remote, clock())
        except Exception as error:  # noqa: BLE001 - whatever aioquic raises ends this connection only
            self._crash(error)
            return
        if self.engine.packets_received != heard:
            # Only a packet that decrypted may move us: anybody can send us other ones.
            self._local = local

    def batch_ended(self) -> None:
        """Hand over what the fed datagrams brought, and answer; who has sent nothing but garbage gets no answer."""
        if self.link is None and self.engine.is_garbage:
            self.forget()
        else:
            super().batch_ended()

    def fail(self, error: Exception, code: CloseCode) -> None:
        """Give a handshake up: tell the peer and whoever waits for it."""
        self.engine.close(error_code=code, reason_phrase=clip(str(error)).decode())
        self.flush_now()
        self._end_handshake(error)

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

    def _send_queued(self) -> None:
        sent = self._send()
        if sent and self.engine.is_closing:
            self._goodbye = sent
        self._register_ids()

    def _sent(self) -> None:
        if self.engine.is_closing and self.engine.get_timer() is None:
            self.forget()
        else:
            self._timer.arm()

    def _deadline(self) -> float | None:
        return self.engine.get_timer()

    def _handle_timeout(self, now: float) -> None:
        self.engine.handle_timer(now)

    def _has_heard(self) -> bool:
        return bool(self.engine.packets_received)

    def _say_goodbye(self) -> None:
        self.engine.close(error_code=CloseCode.INTERNAL_ERROR)
        self._send()

    def _release(self) -> None:
        for connection_id in self._ids:
            self._routes.pop(connection_id, None)
        self._ids.clear()
        self.engine.release()

    def _send(self) -> list[bytes]:
        sent = []
        for data, segment, address in self.engine.bursts_to_send(clock()):
            self.refused = self._udp.send_burst(data, segment, address, self._local)
            if self.refused is not None and self.refused.errno == errno.EMSGSIZE:
                self.engine.too_large(segment)
            sent.append(data)
        return sent

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
