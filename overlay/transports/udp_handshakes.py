"""How raw UDP's handshakes begin and end: the TLS profile, and who is told."""

import hashlib
import time
from functools import cache
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from overlay.errors import HandshakeError, SelfDial
from overlay.identity import Identity, PeerId
from overlay.protocol.codes import CloseCode
from overlay.protocol.gate import HandshakeGate
from overlay.protocol.udp.aead import Aead
from overlay.protocol.udp.cookie import SECRET_SIZE, ResetTokens
from overlay.transports import tls
from overlay.transports.base import Accepted, Role
from overlay.transports.handshakes import Arrival, Dial
from overlay.transports.udp_connection import UdpLink
from overlay.transports.udp_driver import Driver

ALPN: Final = b"overlay-udp/1"


class DialOutcome(Dial[UdpLink, Driver]):
    """The handshake of a connection that we make."""

    def proven(self, driver: Driver, peer: PeerId) -> UdpLink:
        """The acceptor has proven the key that was dialled: TLS lets no other one come so far."""
        link = UdpLink(driver, peer, Role.DIALER, self._handler)
        if self.result.done():
            link.discard()
        else:
            self.result.set_result(link)
        return link


class ArrivalOutcome(Arrival[Driver]):
    """The handshake of a connection that somebody makes to us.

    Args:
        own: our key.
        drivers: those of the transport.
        accepted: the transport's callback.
        gate: where `enter` was called for `host`.
        host: where the stranger is.
    """

    def __init__(self, own: PeerId, drivers: set[Driver], accepted: Accepted, gate: HandshakeGate, host: str) -> None:
        super().__init__(drivers, gate, host)
        self._own = own
        self._accepted = accepted

    def proven(self, driver: Driver, peer: PeerId) -> UdpLink | None:
        """TLS is content; now admission decides, before any state of a session exists."""
        if peer == self._own:
            driver.fail(SelfDial("the dialler has our own key"), CloseCode.SELF_DIAL)
            return None
        self._leave()
        link = UdpLink(driver, peer, Role.ACCEPTOR, None)
        try:
            link.handler = self._accepted(link)
        except HandshakeError as refusal:
            # Its key is proven, so the reason is sealed for it.
            driver.core.close(refusal.code, str(refusal))
            return None
        return link


def udp_profile(identity: Identity) -> tls.Profile:
    """TLS as raw UDP has it.

    One key-exchange group: the ClientHello has 244 bytes instead of 1,451, and fits into one packet of any link. Two
    cipher suites, as one of them becomes the packets' cipher; see `overlay.protocol.udp.aead` for the order.
    """
    fastest = _fastest()
    suites = tuple(aead.suite for aead in sorted(Aead, key=lambda aead: aead is not fastest))
    return tls.Profile(identity, ALPN, curve=ec.SECP256R1(), suites=suites, own_order=fastest is Aead.CHACHA20_POLY1305)


def reset_tokens(identity: Identity) -> ResetTokens:
    """The makers of our reset tokens: the same after a restart, as they follow from our key by a one-way function."""
    key = identity.private_key.private_bytes_raw()
    return ResetTokens(hashlib.blake2b(key, digest_size=SECRET_SIZE, person=b"overlay resets").digest())


@cache
def _fastest() -> Aead:
    return Aead.fastest(time.perf_counter)
