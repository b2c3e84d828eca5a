"""How QUIC handshakes end, and what is answered to strangers without keeping anything for them."""

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
from overlay.transports.base import Accepted, Role
from overlay.transports.handshakes import Arrival, Dial
from overlay.transports.quic_connection import QuicLink
from overlay.transports.quic_driver import Driver

CONNECTION_ID_BYTES: Final = 8


class DialHandshake(Dial[QuicLink, Driver]):
    """The handshake of a connection that we make."""

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


class ArrivalHandshake(Arrival[Driver]):
    """The handshake of a connection that somebody makes to us.

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
        super().__init__(drivers, gate, host)
        self._identity = identity
        self._accepted = accepted

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
