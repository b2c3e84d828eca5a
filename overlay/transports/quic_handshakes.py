"""How QUIC handshakes end, and what is answered to strangers without keeping anything for them."""

import asyncio
import logging
import os
from typing import Final

from aioquic.quic.packet import (
    QuicHeader,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
)
from aioquic.quic.retry import QuicRetryTokenHandler

from overlay.errors import HandshakeError, SelfDial
from overlay.identity import Identity
from overlay.protocol.codes import CloseCode
from overlay.protocol.gate import HandshakeGate
from overlay.transports.base import Accepted, ConnectionHandler, Role
from overlay.transports.quic_connection import Driver, QuicLink

logger = logging.getLogger(__name__)

CONNECTION_ID_BYTES: Final = 8


class DialHandshake:
    """The handshake of a connection that we make.

    Attributes:
        result: the connection, or why there is none.
    """

    def __init__(self, drivers: set[Driver], handler: ConnectionHandler) -> None:
        self.result: asyncio.Future[QuicLink] = asyncio.get_running_loop().create_future()
        self._drivers = drivers
        self._handler = handler

    def completed(self, driver: Driver) -> QuicLink | None:
        """The server has proven the key that was dialled: `Engine` lets no other one come so far."""
        proven = driver.engine.proven
        if proven is None:
            driver.fail(HandshakeError("the peer has proven no key"), CloseCode.UNAUTHENTICATED)
            return None
        link = QuicLink(driver, proven, Role.DIALER, self._handler)
        if self.result.done():
            link.discard()
        else:
            self.result.set_result(link)
        return link

    def failed(self, driver: Driver, error: Exception) -> None:  # noqa: ARG002 - an ArrivalHandshake may need it
        """Tell whoever dials."""
        if not self.result.done():
            self.result.set_exception(error)

    def forgotten(self, driver: Driver) -> None:
        """Nothing is left of it."""
        self._drivers.discard(driver)


class ArrivalHandshake:
    """The handshake of a connection that somebody makes to us; it holds a place at the gate.

    Args:
        identity: ours.
        drivers: those of the transport.
        accepted: the transport's callback.
        gate: where `enter` was called for `host`.
        host: where the stranger is.
    """

    def __init__(
        self, identity: Identity, drivers: set[Driver], accepted: Accepted, gate: HandshakeGate, host: str
    ) -> None:
        self._identity = identity
        self._drivers = drivers
        self._accepted = accepted
        self._gate: HandshakeGate | None = gate
        self._host = host
        self._deadline: asyncio.TimerHandle | None = None

    def arm(self, driver: Driver, timeout: float) -> None:
        """Give the handshake, and the closing time after a failed one, `timeout` seconds."""
        self._deadline = asyncio.get_running_loop().call_later(timeout, self._expired, driver)

    def completed(self, driver: Driver) -> QuicLink | None:
        """TLS is content; a client without a certificate gets so far, and no further."""
        proven = driver.engine.proven
        if proven is None:
            driver.fail(HandshakeError("a client certificate is required"), CloseCode.UNAUTHENTICATED)
            return None
        if proven == self._identity.peer_id:
            driver.fail(SelfDial("the dialler has our own key"), CloseCode.SELF_DIAL)
            return None
        self._leave()
        link = QuicLink(driver, proven, Role.ACCEPTOR, None)
        try:
            link.handler = self._accepted(link)
        except HandshakeError as refusal:
            driver.fail(refusal, refusal.code)
            return None
        return link

    def failed(self, driver: Driver, error: Exception) -> None:  # noqa: ARG002 - a DialHandshake may need it
        """Nobody waits for it."""
        logger.debug("a handshake from %s failed: %s", self._host, error)

    def forgotten(self, driver: Driver) -> None:
        """Leave the gate. A failed handshake keeps its place until now, as its closing time costs memory too."""
        self._drivers.discard(driver)
        self._leave()

    def _expired(self, driver: Driver) -> None:
        driver.fail(HandshakeError("took too long"), CloseCode.HANDSHAKE_TIMEOUT)
        driver.forget()

    def _leave(self) -> None:
        if self._gate is not None:
            self._gate.leave(self._host)
            self._gate = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def version_negotiation(header: QuicHeader) -> bytes:
    """The answer to a packet of a version that we do not speak (RFC 9000 section 6)."""
    packet = bytearray(
        encode_quic_version_negotiation(
            source_cid=header.destination_cid,
            destination_cid=header.source_cid,
            supported_versions=[QuicProtocolVersion.VERSION_1],
        )
    )
    packet[0] |= 0x40  # RFC 9000 section 17.2.1: where QUIC shares its port with others
    return bytes(packet)


def retry(tokens: QuicRetryTokenHandler, header: QuicHeader, address: tuple[str, int], now: float) -> bytes:
    """The packet that asks a client to prove its address (RFC 9000 section 8.1.2)."""
    source = os.urandom(CONNECTION_ID_BYTES)
    return encode_quic_retry(
        version=QuicProtocolVersion.VERSION_1,
        source_cid=source,
        destination_cid=header.source_cid,
        original_destination_cid=header.destination_cid,
        retry_token=tokens.create_token(
            address=address,
            original_destination_connection_id=header.destination_cid,
            retry_source_connection_id=source,
            now=now,
        ),
    )
