"""The wire format of raw UDP: packets, and the frames inside them.

The first byte of every packet is 0b10xxxxxx, so that QUIC (0b01xxxxxx or 0b11xxxxxx, its fixed bit) and STUN
(0b00xxxxxx) are told apart on a shared socket (RFC 9443). Integers have a fixed width and network byte order.

    KNOCK      0x80 | version (32) | source id (64) | padding (zeros, up to KNOCK_SIZE bytes in all)
    COOKIE     0x81 | version (32) | the knocker's id (64) | acceptor's id (64) | cookie (128) | check (64)
    HANDSHAKE  0x82 | version (32) | destination id (64) | source id (64) | cookie length (8) | cookie
                    | packet number (32) | sealed frames (rest; the last 16 bytes are the tag)
    RESET      0x83 | destination id (64) | token (128)
    DATA       0b1010_0k00 | destination id (64) | packet number (32) | sealed frames (rest, with the tag)

A KNOCK costs its sender at least as many bytes as the COOKIE that it gets, so nobody is flooded by way of us; a
server keeps nothing of either. Connection ids are 8 bytes, for ever: a header of fixed size needs no parsing, and a
router in the middle learns nothing from a length. `k` is the key phase (RFC 9001 section 6).

     0               1                               9               13                        n-16           n
    +---------------+---------------+---------------+---------------+-------------------------+---------------+
    | 1 0 1 0 0 k 0 0 |     destination id (64)     |  number (32)  |  frames, encrypted      |   tag (128)   |
    +---------------+---------------+---------------+---------------+-------------------------+---------------+

A DATA packet's whole number has 62 bits, of which the lowest 32 travel; the rest follows from the largest number
received (RFC 9000 section A.3). Numbers are never used twice and never reset, so neither is a nonce. There is no
header protection: it would cost as much as everything else that is done for a packet, and hides no more than how
many packets a connection has sent, which who watches can count.

What is sealed is a sequence of frames: see `payload`.
"""

import struct
from typing import Final

from overlay.protocol.frames import VARINT_MAX

VERSION: Final = 1
KNOCK: Final = 0x80
COOKIE: Final = 0x81
HANDSHAKE: Final = 0x82
RESET: Final = 0x83
DATA: Final = 0xA0
KEY_PHASE: Final = 0x04
"""The bit of a DATA packet's first byte that tells which of two successive keys sealed it."""

ID_SIZE: Final = 8
TOKEN_SIZE: Final = 16
TAG_SIZE: Final = 16
KNOCK_SIZE: Final = 64
"""Bytes: a COOKIE is shorter."""

KNOCK_HEADER: Final = struct.Struct("!BI8s")
"""Type, version, source id. COOKIE begins alike."""
HANDSHAKE_HEADER: Final = struct.Struct("!BI8s8sB")
"""Type, version, destination id, source id, length of the cookie that follows."""
HANDSHAKE_NUMBER: Final = struct.Struct("!I")
RESET_PACKET: Final = struct.Struct("!B8s16s")
DATA_HEADER: Final = struct.Struct("!B8sI")
"""Type and key phase, destination id, the lowest 32 bits of the packet number."""
DATA_OVERHEAD: Final = DATA_HEADER.size + TAG_SIZE
"""Bytes of a DATA packet that are not frames."""

MAXIMUM_DATAGRAM: Final = 65_507
"""Bytes that UDP over IPv4 carries at most."""
MINIMUM_DATAGRAM: Final = 272
"""Bytes that every link must carry, where the search for the path's MTU begins: a link of 300 bytes, less the headers
of IPv4 and UDP. (IPv6 has links of 1280 bytes and more.)"""


def full_number(truncated: int, largest: int) -> int:
    """The packet number whose lowest 32 bits are `truncated`, nearest to the one expected (RFC 9000 section A.3).

    Args:
        truncated: 32 bits off the wire.
        largest: the largest number that was opened so far, -1 at the start.
    """
    expected = largest + 1
    candidate = (expected & ~0xFFFF_FFFF) | truncated
    if candidate <= expected - 0x8000_0000 and candidate < VARINT_MAX + 1 - 0x1_0000_0000:
        return candidate + 0x1_0000_0000
    if candidate > expected + 0x8000_0000 and candidate >= 0x1_0000_0000:
        return candidate - 0x1_0000_0000
    return candidate
