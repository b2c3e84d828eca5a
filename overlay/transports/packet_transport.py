"""What QUIC and raw UDP have in common as transports: shared sockets, a driver for each connection, one turn each.

Each says how a dial begins, and for whom a packet is; the rest is the same and stands here.
"""

import errno
import logging
import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

from overlay.addresses import Address
from overlay.config import Config
from overlay.identity import Identity
from overlay.protocol.codes import CloseCode
from overlay.protocol.gate import HandshakeGate
from overlay.transports.base import Accepted, Transport
from overlay.transports.packet_driver import PacketDriver
from overlay.transports.udp_socket import Kind, Local, SocketAddress, UdpSocket

logger = logging.getLogger(__name__)

AnyDriver = TypeVar("AnyDriver", bound=PacketDriver[Any])


class PacketTransport(Transport, Generic[AnyDriver]):
    """Dials and accepts connections on shared sockets.

    Args:
        identity: our key.
        config: times and limits.
        sockets: one for each bound address.
        accepted: called for each inbound connection whose peer has proven its key.
        gate: counts the inbound handshakes of all transports.
    """

    name: ClassVar[Kind]

    def __init__(
        self,
        identity: Identity,
        config: Config,
        sockets: Sequence[UdpSocket],
        accepted: Accepted,
        gate: HandshakeGate,
    ) -> None:
        self._identity = identity
        self._config = config
        self._sockets = tuple(sockets)
        self._accepted = accepted
        self._gate = gate
        self._drivers: set[AnyDriver] = set()
        self._dials: set[AnyDriver] = set()
        self._touched: dict[AnyDriver, None] = {}
        self._closed = False

    def start(self) -> None:
        """Begin to read; call it inside the running loop."""
        for udp in self._sockets:
            udp.register(self.name, self)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where it listens."""
        return tuple(udp.address.with_transport(self.name) for udp in self._sockets)

    async def aclose(self) -> None:
        """Stop reading, abort what is left; a socket that nobody else uses is closed."""
        self._closed = True
        for driver in list(self._drivers):
            if driver.link is not None:
                driver.link.abort()
            else:
                driver.fail(ConnectionAbortedError(errno.ECONNABORTED, "closed"), CloseCode.NO_ERROR)
            driver.forget()
        for udp in self._sockets:
            udp.unregister(self.name)

    @abstractmethod
    def datagram_received(self, udp: UdpSocket, data: bytes, remote: SocketAddress, local: Local | None) -> None:
        """See `Receiver`."""

    @abstractmethod
    def burst_received(
        self, udp: UdpSocket, data: bytes, segment: int, remote: SocketAddress, local: Local | None
    ) -> None:
        """See `Receiver`."""

    def batch_ended(self, udp: UdpSocket) -> None:
        """Let each connection that got something answer."""
        del udp
        touched, self._touched = self._touched, {}
        for driver in touched:
            try:
                driver.batch_ended()
            except Exception:
                logger.exception("a connection with %s failed", driver.remote)

    def unreachable(self, udp: UdpSocket, remote: SocketAddress, code: int) -> None:
        """End the dials to that address that have not been answered."""
        for driver in tuple(self._dials):
            driver.unreachable(udp, remote, OSError(code, os.strerror(code)))
