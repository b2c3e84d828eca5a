"""How a handshake over UDP begins and ends, whatever is spoken.

Through which socket it is begun, who is told of its end, and when its place at the gate is free again.

QUIC and raw UDP each say what is to be checked when a key is proven; the rest is the same and stands here.
"""

import asyncio
import errno
import logging
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from overlay.addresses import Address
from overlay.errors import HandshakeError
from overlay.protocol.codes import CloseCode
from overlay.protocol.gate import HandshakeGate
from overlay.transports.base import ConnectionHandler
from overlay.transports.packet_driver import AnyLink, PacketDriver
from overlay.transports.udp_socket import UdpSocket

logger = logging.getLogger(__name__)

AnyDriver = TypeVar("AnyDriver", bound=PacketDriver[Any])


class Dial(Generic[AnyLink, AnyDriver]):
    """The handshake of a connection that we make.

    Args:
        drivers: those of the transport.
        dials: those of them that dial.
        handler: of the connection.

    Attributes:
        result: the connection, or why there is none.
    """

    def __init__(self, drivers: set[AnyDriver], dials: set[AnyDriver], handler: ConnectionHandler) -> None:
        self.result: asyncio.Future[AnyLink] = asyncio.get_running_loop().create_future()
        self._drivers = drivers
        self._dials = dials
        self._handler = handler

    async def run(
        self, sockets: Iterable[UdpSocket], address: Address, begin: Callable[[UdpSocket], AnyDriver]
    ) -> AnyLink:
        """Dial through the first socket that has a way to the peer.

        Cancellation: safe; the peer is told, and nothing is left behind.

        Args:
            sockets: of any family, open or closed.
            address: the peer's.
            begin: makes a driver for this handshake.

        Raises:
            HandshakeError: the handshake has failed.
            OSError: no socket of that family, no route, or nobody answers there.
        """
        driver = self._first_way(sockets, address, begin)
        self._dials.add(driver)
        try:
            return await self.result
        except asyncio.CancelledError:
            if driver.link is not None:
                driver.link.discard()
            else:
                driver.fail(ConnectionAbortedError(errno.ECONNABORTED, "cancelled"), CloseCode.LOST_RACE)
            driver.forget()
            raise
        finally:
            self._dials.discard(driver)

    def failed(self, error: Exception) -> None:
        """Tell whoever dials."""
        if not self.result.done():
            self.result.set_exception(error)

    def forgotten(self, driver: AnyDriver) -> None:
        """Nothing is left of it."""
        self._drivers.discard(driver)

    def _first_way(
        self, sockets: Iterable[UdpSocket], address: Address, begin: Callable[[UdpSocket], AnyDriver]
    ) -> AnyDriver:
        refused = OSError(errno.EAFNOSUPPORT, f"no UDP socket of the family of {address}")
        for udp in sockets:
            if udp.family != address.family or udp.is_closed:
                continue
            driver = begin(udp)
            self._drivers.add(driver)
            driver.flush()
            if driver.refused is None:
                return driver
            # Bound to another network than the peer's: the next socket may have a way.
            refused = driver.refused
            driver.forget()
        raise refused


class Arrival(Generic[AnyDriver]):
    """The handshake of a connection that somebody makes to us; it holds a place at the gate.

    Args:
        drivers: those of the transport.
        gate: where `enter` was called for `host`.
        host: where the stranger is.
    """

    def __init__(self, drivers: set[AnyDriver], gate: HandshakeGate, host: str) -> None:
        self._drivers = drivers
        self._gate: HandshakeGate | None = gate
        self._host = host
        self._deadline: asyncio.TimerHandle | None = None

    def arm(self, driver: AnyDriver, timeout: float) -> None:
        """Give the handshake, and the closing time after a failed one, `timeout` seconds."""
        self._deadline = asyncio.get_running_loop().call_later(timeout, self._expired, driver)

    def failed(self, error: Exception) -> None:
        """Nobody waits for it."""
        logger.debug("a handshake from %s failed: %s", self._host, error)

    def forgotten(self, driver: AnyDriver) -> None:
        """Leave the gate. A failed handshake keeps its place until now, as its closing time costs memory too."""
        self._drivers.discard(driver)
        self._leave()

    def _expired(self, driver: AnyDriver) -> None:
        driver.fail(HandshakeError("took too long"), CloseCode.HANDSHAKE_TIMEOUT)
        driver.forget()

    def _leave(self) -> None:
        if self._gate is not None:
            self._gate.leave(self._host)
            self._gate = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
