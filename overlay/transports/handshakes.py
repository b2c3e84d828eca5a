"""How a handshake over UDP ends, whatever is spoken: who is told, and when its place at the gate is free again.

QUIC and raw UDP each say what is to be checked when a key is proven; the rest is the same and stands here.
"""

import asyncio
import logging
from typing import Generic, Protocol, TypeVar

from overlay.errors import HandshakeError
from overlay.protocol.codes import CloseCode
from overlay.protocol.gate import HandshakeGate
from overlay.transports.base import Connection, ConnectionHandler

logger = logging.getLogger(__name__)

Link = TypeVar("Link", bound=Connection)


class Driver(Protocol):
    """What moves the packets of a handshake."""

    def fail(self, error: Exception, code: CloseCode) -> None:
        """Give the handshake up: tell the peer and whoever waits for it."""

    def forget(self) -> None:
        """Free everything at once."""


AnyDriver = TypeVar("AnyDriver", bound=Driver)


class Dial(Generic[Link, AnyDriver]):
    """The handshake of a connection that we make.

    Args:
        drivers: those of the transport.
        handler: of the connection.

    Attributes:
        result: the connection, or why there is none.
    """

    def __init__(self, drivers: set[AnyDriver], handler: ConnectionHandler) -> None:
        self.result: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
        self._drivers = drivers
        self._handler = handler

    def failed(self, error: Exception) -> None:
        """Tell whoever dials."""
        if not self.result.done():
            self.result.set_exception(error)

    def forgotten(self, driver: AnyDriver) -> None:
        """Nothing is left of it."""
        self._drivers.discard(driver)


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
