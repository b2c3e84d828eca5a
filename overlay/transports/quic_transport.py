"""QUIC as a transport: finds the connection that a datagram belongs to, dials, and lets newcomers in."""

import logging
from collections.abc import Sequence

from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # re-exported without saying so
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE
from aioquic.quic.packet import (
    QuicHeader,
    QuicPacketType,
    QuicProtocolVersion,
    pull_quic_header,
)
from aioquic.quic.retry import QuicRetryTokenHandler

from overlay.addresses import Address
from overlay.config import Config
from overlay.errors import SelfDial
from overlay.identity import Identity, PeerId
from overlay.protocol.budget import Budget
from overlay.protocol.gate import HandshakeGate
from overlay.transports.base import Accepted, ConnectionHandler, Role
from overlay.transports.lazy_timer import clock
from overlay.transports.packet_transport import PacketTransport
from overlay.transports.quic import Engine, quic_configuration
from overlay.transports.quic_connection import QuicLink
from overlay.transports.quic_driver import Driver
from overlay.transports.quic_handshakes import (
    CONNECTION_ID_BYTES,
    ArrivalHandshake,
    DialHandshake,
    retry,
    version_negotiation,
)
from overlay.transports.udp_socket import Local, SocketAddress, UdpSocket, socket_address

logger = logging.getLogger(__name__)


class QuicTransport(PacketTransport[Driver]):
    """Dials and accepts QUIC connections on shared sockets; see `PacketTransport`."""

    name = "quic"

    def __init__(
        self,
        identity: Identity,
        config: Config,
        sockets: Sequence[UdpSocket],
        accepted: Accepted,
        gate: HandshakeGate,
    ) -> None:
        super().__init__(identity, config, sockets, accepted, gate)
        self._dialing = quic_configuration(identity, config, Role.DIALER)
        self._accepting = quic_configuration(identity, config, Role.ACCEPTOR)
        self._tokens = QuicRetryTokenHandler()
        self._routes: dict[bytes, Driver] = {}
        self._windows = Budget(config.limits.stranger_memory)

    async def dial(self, address: Address, peer_id: PeerId, handler: ConnectionHandler) -> QuicLink:
        """Connect to a peer; see `Transport.dial`.

        Cancellation: safe; the peer is told, and nothing is left behind.

        Raises:
            HandshakeError: somebody else, or nobody acceptable, answered, or the connection ended at once.
            OSError: no socket of that family, no route, nobody listens there (ConnectionRefusedError), or
                (TimeoutError) no answer for the idle time.
        """
        if peer_id == self._identity.peer_id:
            raise SelfDial("that is our own key")
        remote = socket_address(address)
        dial = DialHandshake(self._drivers, self._dials, handler)

        def begin(udp: UdpSocket) -> Driver:
            now = clock()
            engine = Engine(
                self._identity,
                self._dialing,
                now,
                expected=peer_id,
                largest_datagram=self._config.largest_datagram,
            )
            engine.connect(remote, now)
            return Driver(engine, udp, remote, None, self._routes, dial)

        link = await dial.run(self._sockets, address, begin)
        if link.is_closed:
            raise link.handshake_error()
        return link

    def datagram_received(self, udp: UdpSocket, data: bytes, remote: SocketAddress, local: Local | None) -> None:
        """Find the connection by the destination connection id, or a newcomer."""
        if data[0] & 0x80:
            try:
                header = pull_quic_header(Buffer(data=data), host_cid_length=CONNECTION_ID_BYTES)
            except ValueError:
                return
            driver = self._routes.get(header.destination_cid)
            if driver is None:
                driver = self._newcomer(udp, header, len(data), remote, local)
        else:
            driver = self._routes.get(data[1 : 1 + CONNECTION_ID_BYTES])
        if driver is not None:
            driver.receive(data, len(data), remote, local)
            self._touched[driver] = None

    def burst_received(
        self, udp: UdpSocket, data: bytes, segment: int, remote: SocketAddress, local: Local | None
    ) -> None:
        """Several datagrams in one, mostly all for one connection."""
        ids = {data[at + 1 : at + 1 + CONNECTION_ID_BYTES] for at in range(0, len(data), segment)}
        if len(ids) == 1 and max(data[::segment]) < 0x80:
            driver = self._routes.get(ids.pop())
            if driver is not None:
                driver.receive(data, segment, remote, local)
                self._touched[driver] = None
            return
        for at in range(0, len(data), segment):
            self.datagram_received(udp, data[at : at + segment], remote, local)

    def _newcomer(
        self, udp: UdpSocket, header: QuicHeader, size: int, remote: SocketAddress, local: Local | None
    ) -> Driver | None:
        """Make a driver for a new client, answer without keeping anything, or do nothing."""
        if self._closed or size < SMALLEST_MAX_DATAGRAM_SIZE:
            # RFC 9000 section 14.1; so no answer of ours is longer than the question.
            return None
        if header.version != QuicProtocolVersion.VERSION_1:
            if header.packet_type is not QuicPacketType.VERSION_NEGOTIATION:
                udp.send((version_negotiation(header),), remote, local)
            return None
        if header.packet_type is not QuicPacketType.INITIAL:
            return None
        now = clock()
        original, retried = header.destination_cid, None
        host, port = remote[0], remote[1]
        if header.token:
            try:
                original = self._tokens.validate_token(
                    address=(host, port), destination_cid=header.destination_cid, token=header.token, now=now
                )
            except ValueError as error:
                logger.debug("a token from %s is refused: %s", host, error)
                return None
            retried = header.destination_cid
        elif self._gate.pending >= self._config.limits.retry_above:
            udp.send((retry(self._tokens, header, (host, port), now),), remote, local)
            return None
        if not self._gate.enter(host):
            return None
        engine = Engine(
            self._identity,
            self._accepting,
            now,
            windows=self._windows,
            largest_datagram=self._config.largest_datagram,
            original_destination_connection_id=original,
            retry_source_connection_id=retried,
        )
        arrival = ArrivalHandshake(self._identity, self._drivers, self._accepted, self._gate, host)
        driver = Driver(engine, udp, remote, local, self._routes, arrival)
        driver.add_id(header.destination_cid)
        arrival.arm(driver, self._config.handshake_timeout)
        self._drivers.add(driver)
        return driver
