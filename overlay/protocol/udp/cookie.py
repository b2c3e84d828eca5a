"""Cookies and reset tokens: what is answered to strangers, without remembering anything of them.

A dialler knocks with nothing but its connection id. The answer is a cookie: a keyed hash of the address that it went
to. Who brings it back gets its packets at that address; only then are there state, TLS and signatures for it.

    COOKIE     0x81 | version (32) | the knocker's id (64) | acceptor's id (64) | cookie (128) | check (64)

     0        1                                                               16
    +--------+-----------------------------------------------------------------+
    | period |  keyed BLAKE2b of the knocker's id and its address              |
    +--------+-----------------------------------------------------------------+

The acceptor's id comes out of the same hash: it is as good as random for everybody else, and a dialler whose first
packet arrives twice finds the connection that the first one has made, without any list of what was seen. The check is
a hash of all before it: a COOKIE that was damaged would else be as good as a true one, until nobody answers to it.

A period has its own secret, drawn when it begins; the secret of the period before is kept beside it. So a cookie is
good for one to two periods, and no secret is old enough to be worth an attack.

A **reset token** tells a peer that we have forgotten its connection, for example after a restart (RFC 9000 section
10.3). It is a keyed hash of the connection id under a secret that outlives the process. The peer was given it, sealed,
while the connection lived; nobody else can make it.
"""

import hashlib
import hmac
from collections.abc import Callable
from typing import Final

from overlay.protocol.udp.wire import (
    COOKIE,
    ID_SIZE,
    KNOCK,
    KNOCK_HEADER,
    KNOCK_SIZE,
    RESET,
    RESET_PACKET,
    TOKEN_SIZE,
    VERSION,
)

PERIOD: Final = 30.0
"""Seconds. A dial gives up after as long, so a cookie outlives the handshake that it was given for."""
COOKIE_SIZE: Final = 16
SECRET_SIZE: Final = 32

_CHECK_SIZE = 8
_ANSWER_SIZE = KNOCK_HEADER.size + ID_SIZE + COOKIE_SIZE + _CHECK_SIZE

Bytes = bytes | bytearray | memoryview


class CookieJar:
    """Gives cookies and knows its own again; its size does not depend on how many it gave.

    Args:
        random: as many unpredictable bytes as asked for (`os.urandom`).
    """

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._period = -1
        self._secret = random(SECRET_SIZE)
        self._previous = random(SECRET_SIZE)

    def answer_knock(self, datagram: Bytes, address: bytes, now: float) -> bytes | None:
        """The COOKIE for a KNOCK, which is no longer than it; None when it is none, or too short to deserve one.

        Args:
            datagram: what came.
            address: where from: the bytes of address and port, in a form that is the same every time.
            now: the clock, in seconds.
        """
        if len(datagram) < KNOCK_SIZE:
            return None
        kind, version, dialler = KNOCK_HEADER.unpack_from(datagram)
        if kind != KNOCK or version != VERSION:
            return None
        return self.answer(dialler, address, now)

    def answer(self, dialler: bytes, address: bytes, now: float) -> bytes:
        """The COOKIE for whoever calls itself `dialler`: it may only go to `address`.

        Also for a HANDSHAKE packet of no known connection whose cookie is not good (any more); it is longer than this.
        """
        self._turn(now)
        acceptor, proof = self._hash(self._secret, dialler, address)
        packet = KNOCK_HEADER.pack(COOKIE, VERSION, dialler) + acceptor + bytes((self._period & 0xFF,)) + proof
        return packet + _check(packet)

    def accepts(self, cookie: bytes, dialler: bytes, acceptor: bytes, address: bytes, now: float) -> bool:
        """Whether we gave this cookie to this address, for these ids, no more than two periods ago."""
        self._turn(now)
        if len(cookie) != COOKIE_SIZE:
            return False
        age = (self._period - cookie[0]) & 0xFF
        if age > 1:
            return False
        expected = b"".join(self._hash(self._previous if age else self._secret, dialler, address))
        return hmac.compare_digest(expected, acceptor + cookie[1:])

    def _turn(self, now: float) -> None:
        period = int(now // PERIOD)
        if period == self._period:
            return
        # After a pause of more than a period the secret is not the one of the period before.
        self._previous = self._secret if period == self._period + 1 else self._random(SECRET_SIZE)
        self._secret = self._random(SECRET_SIZE)
        self._period = period

    @staticmethod
    def _hash(secret: bytes, dialler: bytes, address: bytes) -> tuple[bytes, bytes]:
        size = ID_SIZE + COOKIE_SIZE - 1
        # The id comes first: it has a fixed size, so no other pair is made of the same bytes.
        digest = hashlib.blake2b(dialler + address, digest_size=size, key=secret, person=b"overlay cookie").digest()
        return digest[:ID_SIZE], digest[ID_SIZE:]


class ResetTokens:
    """Makes the reset tokens of our connection ids.

    Args:
        secret: SECRET_SIZE bytes. They should outlive the process: resets are for what it had before a restart.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def token(self, connection_id: bytes) -> bytes:
        """The token for one of our connection ids."""
        return hashlib.blake2b(
            connection_id, digest_size=TOKEN_SIZE, key=self._secret, person=b"overlay reset"
        ).digest()

    def reset(self, connection_id: bytes, cause: int) -> bytes | None:
        """The RESET that answers a packet for a connection id that is not known (any more).

        Args:
            connection_id: the packet's destination id.
            cause: the packet's size in bytes. None is returned unless it was larger than the answer: two hosts that
                both know nothing would else reset each other's resets for ever (RFC 9000 section 10.3.3).
        """
        if cause <= RESET_PACKET.size:
            return None
        return RESET_PACKET.pack(RESET, connection_id, self.token(connection_id))


def knock(dialler: bytes) -> bytes:
    """The KNOCK of a dialler that wants to be called by this connection id."""
    return KNOCK_HEADER.pack(KNOCK, VERSION, dialler).ljust(KNOCK_SIZE, b"\0")


def read_cookie(datagram: Bytes, dialler: bytes) -> tuple[bytes, bytes] | None:
    """The acceptor's id and the cookie in a COOKIE for `dialler`; None when it is none.

    Who did not see our KNOCK does not know the id, and cannot make one.
    """
    if len(datagram) != _ANSWER_SIZE or KNOCK_HEADER.unpack_from(datagram) != (COOKIE, VERSION, dialler):
        return None
    packet, check = bytes(datagram[:-_CHECK_SIZE]), datagram[-_CHECK_SIZE:]
    if _check(packet) != check:
        return None
    rest = packet[KNOCK_HEADER.size :]
    return rest[:ID_SIZE], rest[ID_SIZE:]


def read_reset(datagram: Bytes) -> tuple[bytes, bytes] | None:
    """The connection id and the token in a RESET; None when it is none."""
    if len(datagram) != RESET_PACKET.size or datagram[0] != RESET:
        return None
    _, connection_id, token = RESET_PACKET.unpack(datagram)
    return connection_id, token


def _check(packet: bytes) -> bytes:
    return hashlib.blake2b(packet, digest_size=_CHECK_SIZE, person=b"overlay check").digest()
