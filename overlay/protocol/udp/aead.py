"""The packet cipher: which one, how far it may be used, and one generation of its keys.

**Which one** is what TLS agreed on, so nobody between the two can have a say in it: both suites are offered, and the
order says what is fast here. Who has AES instructions offers AES-128-GCM first and, accepting, takes what the dialler
likes best; who has none offers ChaCha20-Poly1305 first and, accepting, insists on its own order. So AES is chosen when
both are fast with it, else what the weaker side can do.
"""

import hmac
from collections.abc import Callable
from enum import Enum
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import ProtocolViolation
from overlay.protocol.udp.wire import KEY_PHASE

SECRET_SIZE: Final = 48
"""Bytes of a secret: one output of SHA-384."""


class Aead(Enum):
    """An authenticated cipher, with its limits of RFC 9001 section 6.6."""

    AES_128_GCM = "TLS_AES_128_GCM_SHA256", 16, 2**23, 2**52
    CHACHA20_POLY1305 = "TLS_CHACHA20_POLY1305_SHA256", 32, 2**62, 2**36

    def __init__(self, suite: str, key_size: int, confidentiality: int, integrity: int) -> None:
        self.suite = suite
        """The TLS 1.3 cipher suite that stands for it (RFC 8446 appendix B.4)."""
        self.key_size = key_size
        """Bytes."""
        self.confidentiality = confidentiality
        """Packets that may be sealed with one key."""
        self.integrity = integrity
        """Forged packets that may be looked at in the whole life of a connection."""

    @classmethod
    def of_suite(cls, suite: str | None) -> "Aead":
        """The one that a TLS cipher suite stands for.

        Raises:
            ProtocolViolation: the suite is none of ours; an acceptor that is offered ours only cannot choose it.
        """
        for aead in cls:
            if aead.suite == suite:
                return aead
        raise ProtocolViolation(CloseCode.UNAUTHENTICATED, f"packets cannot be sealed with {suite}")

    @classmethod
    def fastest(cls, clock: Callable[[], float]) -> "Aead":
        """The one that is faster here, by a measurement of about a millisecond: call it once per process.

        What a processor's flags promise is of no use where the library does not use it.

        Args:
            clock: seconds, as precise as there is (`time.perf_counter`).
        """
        payload, nonce = bytes(1400), bytes(12)
        best: dict[Aead, float] = {}
        for _ in range(5):
            for aead in cls:
                encrypt = aead.cipher(bytes(aead.key_size)).encrypt
                began = clock()
                for _ in range(16):
                    encrypt(nonce, payload, None)
                taken = clock() - began
                best[aead] = min(best.get(aead, taken), taken)
        return min(best, key=best.__getitem__)

    def cipher(self, key: bytes) -> AESGCM | ChaCha20Poly1305:
        """The cipher with a key."""
        return AESGCM(key) if self is Aead.AES_128_GCM else ChaCha20Poly1305(key)


class Keys:
    """One generation of keys for one direction.

    Args:
        aead: the cipher.
        secret: SECRET_SIZE bytes that nobody else knows; used for nothing but to derive from it.
        generation: 0 for the first.

    Attributes:
        encrypt, decrypt: of the cipher: nonce, data, associated data.
        iv: to be combined with a packet's number by xor, which gives the nonce (RFC 9001 section 5.3).
        generation: how many updates led here.
        phase: KEY_PHASE in an odd generation, else 0.
    """

    __slots__ = ("_aead", "_secret", "decrypt", "encrypt", "generation", "iv", "phase")

    def __init__(self, aead: Aead, secret: bytes, generation: int = 0) -> None:
        cipher = aead.cipher(expand(secret, b"key", aead.key_size))
        self.encrypt = cipher.encrypt
        self.decrypt = cipher.decrypt
        self.iv = int.from_bytes(expand(secret, b"iv", 12), "big")
        self.generation = generation
        self.phase = KEY_PHASE * (generation & 1)
        self._aead = aead
        self._secret = secret

    def following(self) -> "Keys":
        """The next generation (RFC 9001 section 6.1); these keys cannot be computed from it."""
        return Keys(self._aead, expand(self._secret, b"update", SECRET_SIZE), self.generation + 1)


def expand(secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand with SHA-384 (RFC 5869 section 2.3) for up to 48 bytes, which is one round of it."""
    return hmac.digest(secret, b"overlay-udp/1 " + label + b"\x01", "sha384")[:size]
