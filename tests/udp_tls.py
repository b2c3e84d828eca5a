"""TLS as raw UDP has it: one key-exchange group, and the packet cipher chosen by the order of the suites."""

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from overlay.identity import Identity, PeerId
from overlay.protocol.udp.aead import Aead
from overlay.transports import tls
from overlay.transports.base import Role

ALPN = b"overlay-udp/1"


def profile(identity: Identity, fastest: Aead = Aead.AES_128_GCM, alpn: bytes = ALPN) -> tls.Profile:
    """A profile of a machine on which `fastest` is."""
    it = tls.Profile(identity, alpn)
    it._context.set_tmp_ecdh(ec.SECP256R1())
    suites = sorted(Aead, key=lambda aead: aead is not fastest)
    it._context.set_tls13_ciphersuites(":".join(aead.suite for aead in suites).encode())
    if fastest is Aead.CHACHA20_POLY1305:
        it._context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
    return it


def dialling(it: tls.Profile, expected: PeerId | None = None) -> Callable[[], tls.Handshake]:
    return lambda: it.handshake(Role.DIALER, expected)


def accepting(it: tls.Profile) -> Callable[[], tls.Handshake]:
    return lambda: it.handshake(Role.ACCEPTOR)
