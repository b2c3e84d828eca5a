"""Raw UDP as a transport: finds the connection that a packet belongs to, dials, and lets newcomers in.

What strangers get, and what it costs us:

    KNOCK                          a COOKIE, which is shorter: one hash, and nothing is kept
    HANDSHAKE, cookie not good     a COOKIE, which is shorter: the same
    HANDSHAKE, cookie good         a place at the gate, TLS, and a deadline
    DATA of no connection          a RESET, which is shorter, RESETS_PER_SECOND in all: one hash
    anything else                  nothing
"""

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Final

from overlay.addresses import Address
from overlay.config import Config
from overlay.errors import SelfDial
from overlay.identity import Identity, PeerId
from overlay.protocol.gate import HandshakeGate
from overlay.protocol.udp.connection import UdpCore
from overlay.protocol.udp.cookie import CookieJar, read_reset
from overlay.protocol.udp.handshake import AcceptorHandshake, DiallerHandshake
from overlay.protocol.udp.handshake_packets import Header
from overlay.protocol.udp.wire import (
    COOKIE,
    DATA,
    DATA_OVERHEAD,
    HANDSHAKE,
    ID_SIZE,
    KEY_PHASE,
    KNOCK,
    KNOCK_SIZE,
    RESET,
)
from overlay.transports.base import Accepted, ConnectionHandler, Role
from overlay.transports.lazy_timer import clock
from overlay.transports.packet_transport import PacketTransport
from overlay.transports.udp_connection import UdpLink, handshake_error
from overlay.transports.udp_driver import Core, Driver
from overlay.transports.udp_handshakes import ArrivalOutcome, DialOutcome, reset_tokens, udp_profile
from overlay.transports.udp_routes import Routes
from overlay.transports.udp_socket import Local, SocketAddress, UdpSocket, socket_address

logger = logging.getLogger(__name__)

RESETS_PER_SECOND: Final = 32
"""Each of our former peers needs one; more are the echo of a flood."""

_DATA_ID: Final = slice(1, 1 + ID_SIZE)
_LONG_ID: Final = slice(5, 5 + ID_SIZE)
"""Where the destination id stands, in a DATA packet, and behind a version."""


class UdpTransport(PacketTransport[Driver]):
    """Dials and accepts raw UDP connections on shared sockets; see `PacketTransport`."""

    name = "udp"

    def __init__(
        self,
        identity: Identity,
        config: Config,
        sockets: Sequence[UdpSocket],
        accepted: Accepted,
        gate: HandshakeGate,
    ) -> None:
        super().__init__(identity, config, sockets, accepted, gate)
        self._profile = udp_profile(identity)
        self._cookies = CookieJar(os.urandom)
        self._resets = reset_tokens(identity)
        self._resets_left = RESETS_PER_SECOND
        self._resets_second = 0
        self._routes = Routes()

    async def dial(self, address: Address, peer_id: PeerId, handler: ConnectionHandler) -> UdpLink:
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
        dial = DialOutcome(self._drivers, self._dials, handler)

        def begin(udp: UdpSocket) -> Driver:
            handshake: DiallerHandshake[PeerId] = DiallerHandshake(
                os.urandom(ID_SIZE), partial(self._profile.handshake, Role.DIALER, peer_id)
            )
            core = self._core(handshake, remote, self._config.idle_timeout)
            return Driver(core, udp, remote, None, self._routes, dial)

        link = await dial.run(self._sockets, address, begin)
        if link.reason is not None:
            raise handshake_error(link.reason)
        return link

    def datagram_received(self, udp: UdpSocket, data: bytes, remote: SocketAddress, local: Local | None) -> None:
        """Find the connection by the destination connection id, or a newcomer."""
        self.burst_received(udp, data, len(data), remote, local)

    def burst_received(
        self, udp: UdpSocket, data: bytes, segment: int, remote: SocketAddress, local: Local | None
    ) -> None:
        """The same for several packets; those of one connection are handed over together."""
        if len(data) > segment and not _is_uniform(data, segment):
            for at in range(0, len(data), segment):
                self.burst_received(udp, data[at : at + segment], segment, remote, local)
            return
        kind = data[0]
        if kind & ~KEY_PHASE == DATA:
            driver = self._routes.ids.get(data[_DATA_ID])
            if driver is None:
                self._answer_unknown(udp, data[_DATA_ID], min(segment, len(data)), remote, local)
                return
        else:
            driver = self._find(kind, udp, data, remote, local)
            if driver is None:
                return
        driver.receive(data, segment, remote, local)
        self._touched[driver] = None

    def _core(
        self,
        handshake: DiallerHandshake[PeerId] | AcceptorHandshake[PeerId],
        remote: SocketAddress,
        handshake_timeout: float,
    ) -> Core:
        return UdpCore(
            handshake,
            remote,
            random=os.urandom,
            token=self._resets.token,
            now=clock(),
            handshake_timeout=handshake_timeout,
            idle_timeout=self._config.idle_timeout,
            largest_datagram=self._config.largest_datagram,
        )

    def _find(
        self, kind: int, udp: UdpSocket, data: bytes, remote: SocketAddress, local: Local | None
    ) -> Driver | None:
        """The connection that a packet other than DATA is for; a stranger's is answered, or ignored."""
        if kind == RESET:
            reset = read_reset(data)
            return None if reset is None else self._routes.resets.get((remote, reset[0]))
        if kind in {COOKIE, HANDSHAKE}:
            driver = self._routes.ids.get(data[_LONG_ID])
            if driver is None and kind == HANDSHAKE:
                self._newcomer(udp, data, remote, local)
            return driver
        if kind == KNOCK and not self._closed:
            answer = self._cookies.answer_knock(data, _place(remote), clock())
            if answer is not None:
                udp.send((answer,), remote, local)
        return None

    def _newcomer(self, udp: UdpSocket, data: bytes, remote: SocketAddress, local: Local | None) -> None:
        """Make a driver for a new peer, answer without keeping anything, or do nothing."""
        header = Header.read(data)
        if header is None or not header.cookie or self._closed:
            return
        now = clock()
        place = _place(remote)
        if not self._cookies.accepts(header.cookie, header.source, header.destination, place, now):
            if len(data) >= KNOCK_SIZE:
                # It was good once, perhaps; and no answer of ours is longer than the question.
                udp.send((self._cookies.answer(header.source, place, now),), remote, local)
            return
        host = str(remote[0])
        if not self._gate.enter(host):
            return
        with ExitStack() as entered:
            # Whatever goes wrong, the place is free again, until there is an outcome that looks after it.
            entered.callback(self._gate.leave, host)
            handshake = AcceptorHandshake(header, partial(self._profile.handshake, Role.ACCEPTOR))
            handshake.receive_datagram(data, now)
            if not handshake.heard:
                return
            core = self._core(handshake, remote, self._config.handshake_timeout)
            entered.pop_all()
        outcome = ArrivalOutcome(self._identity.peer_id, self._drivers, self._accepted, self._gate, host)
        driver = Driver(core, udp, remote, local, self._routes, outcome)
        outcome.arm(driver, self._config.handshake_timeout)
        self._drivers.add(driver)
        self._touched[driver] = None

    def _answer_unknown(
        self, udp: UdpSocket, connection_id: bytes, size: int, remote: SocketAddress, local: Local | None
    ) -> None:
        """Tell whoever holds a connection that we have forgotten (RFC 9000 section 10.3), but not too often."""
        second = int(clock())
        if second != self._resets_second:
            self._resets_second = second
            self._resets_left = RESETS_PER_SECOND
        if self._closed or not self._resets_left or len(connection_id) < ID_SIZE:
            return
        packet = self._resets.reset(connection_id, size)
        if packet is not None:
            self._resets_left -= 1
            udp.send((packet,), remote, local)


def _is_uniform(data: bytes, segment: int) -> bool:
    """Whether all packets in `data` are DATA for one connection id, and of one key phase."""
    if data[0] & ~KEY_PHASE != DATA or segment < DATA_OVERHEAD:
        return False
    # Byte by byte of the header and not packet by packet: so the loops are C's, and take a third of the time.
    columns = (data[at::segment] for at in range(_DATA_ID.stop))
    return all(column.count(column[0]) == len(column) for column in columns)


def _place(remote: SocketAddress) -> bytes:
    """An address in a form that is the same every time."""
    return repr(remote).encode()
