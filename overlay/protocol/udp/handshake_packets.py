"""HANDSHAKE packets: their header, and a seal that anybody could make who saw the handshake from its first packet.

The seal's keys are derived from the connection ids and the cookie, which travel in the clear. It keeps no secret, it
keeps out noise: a damaged packet does not open, nor does one of somebody who can send to us and not listen to us
(RFC 9001 section 5.2 does so for QUIC's Initial packets). What is worth a secret, TLS has sealed inside.

The dialler's packets show the cookie until it has heard the acceptor; the keys stay the same when they no longer do.
"""

import hmac
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag

from overlay.protocol.udp.aead import SECRET_SIZE, Aead, Keys, expand
from overlay.protocol.udp.wire import HANDSHAKE, HANDSHAKE_HEADER, HANDSHAKE_NUMBER, TAG_SIZE, VERSION

OVERHEAD: Final = HANDSHAKE_HEADER.size + HANDSHAKE_NUMBER.size + TAG_SIZE
"""Bytes of a HANDSHAKE packet that are neither cookie nor frames."""

_SALT = b"overlay-udp/1 handshake"

Bytes = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Header:
    """What stands in front of a HANDSHAKE packet's number."""

    destination: bytes
    source: bytes
    cookie: bytes
    """Empty once the dialler has heard the acceptor, and always from the acceptor."""

    @classmethod
    def read(cls, datagram: Bytes) -> "Header | None":
        """The header of a packet; None when it is no HANDSHAKE of our version, or cut short."""
        if len(datagram) < OVERHEAD:
            return None
        kind, version, destination, source, length = HANDSHAKE_HEADER.unpack_from(datagram)
        if kind != HANDSHAKE or version != VERSION or len(datagram) < OVERHEAD + length:
            return None
        return cls(destination, source, bytes(datagram[HANDSHAKE_HEADER.size : HANDSHAKE_HEADER.size + length]))

    def write(self) -> bytes:
        """The bytes that `read` reads."""
        return HANDSHAKE_HEADER.pack(HANDSHAKE, VERSION, self.destination, self.source, len(self.cookie)) + self.cookie


class Seal:
    """Seals our packets of one handshake and opens the peer's.

    Args:
        sending: the direction of our packets.
        receiving: that of the peer's.
    """

    def __init__(self, sending: Keys, receiving: Keys) -> None:
        self._sending = sending
        self._receiving = receiving

    @classmethod
    def of_dialler(cls, dialler: bytes, acceptor: bytes, cookie: bytes) -> "Seal":
        """For the side that dialled, from both connection ids and the cookie."""
        return cls(*_keys(dialler, acceptor, cookie))

    @classmethod
    def of_acceptor(cls, dialler: bytes, acceptor: bytes, cookie: bytes) -> "Seal":
        """For the side that accepts."""
        of_dialler, of_acceptor = _keys(dialler, acceptor, cookie)
        return cls(of_acceptor, of_dialler)

    def seal(self, header: Header, number: int, payload: bytes) -> bytes:
        """A whole packet."""
        front = header.write() + HANDSHAKE_NUMBER.pack(number)
        keys = self._sending
        return front + keys.encrypt((keys.iv ^ number).to_bytes(12, "big"), payload, front)

    def open(self, datagram: Bytes, header: Header) -> tuple[int, bytes] | None:
        """The number and the frames of a packet whose header was read; None if it does not open."""
        start = HANDSHAKE_HEADER.size + len(header.cookie)
        body = start + HANDSHAKE_NUMBER.size
        [number] = HANDSHAKE_NUMBER.unpack_from(datagram, start)
        keys = self._receiving
        try:
            payload = keys.decrypt((keys.iv ^ number).to_bytes(12, "big"), datagram[body:], bytes(datagram[:body]))
        except InvalidTag:
            return None
        return number, payload


def _keys(dialler: bytes, acceptor: bytes, cookie: bytes) -> tuple[Keys, Keys]:
    secret = hmac.digest(_SALT, dialler + acceptor + cookie, "sha384")
    return (
        Keys(Aead.AES_128_GCM, expand(secret, b"dialler", SECRET_SIZE)),
        Keys(Aead.AES_128_GCM, expand(secret, b"acceptor", SECRET_SIZE)),
    )
