"""A peer's own list of its addresses, signed with its key, so that anybody may hand it on.

    version 1 (1) | key (32) | sequence (8, big-endian) | signature (64) | addresses, separated by commas

The signature (Ed25519, RFC 8032) is over a prefix of its own, so that it is good for nothing else, the key, the
sequence and the addresses as they stand there. It says that the key's owner wrote the list, and nothing more: whether
an address is true, only a dial tells. There is one encoding for each record: each address in canonical form, none
twice. Whether a record is stale is for `overlay.protocol.address_book.AddressBook.record` to say.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from overlay.addresses import MAX_TICKET_ADDRESSES, Address
from overlay.errors import AddressError, IdentityError, RecordError
from overlay.identity import Identity, PeerId

PREFIX: Final = b"overlay peer record 1\0"
VERSION: Final = 1
MAX_RECORD_BYTES: Final = 4096
MAX_RECORD_ADDRESSES: Final = MAX_TICKET_ADDRESSES
MAX_SEQUENCE: Final = 2**64 - 1

_HEAD: Final = struct.Struct(">B32sQ64s")
_SIGNED: Final = struct.Struct(">32sQ")


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """A record, as `make` or `decode` return it: only those two vouch for the signature."""

    peer_id: PeerId
    """Whose addresses these are, and who signed."""
    sequence: int
    """From 1; a record with a larger one replaces all before."""
    addresses: tuple[Address, ...]
    """In the order of the owner's preference."""
    signature: bytes

    @classmethod
    def make(cls, identity: Identity, addresses: Iterable[Address], sequence: int) -> Self:
        """Sign one's own addresses; repeated ones are left out.

        Args:
            identity: who signs.
            addresses: 1 to 64, no link-local ones: their zone means nothing to others.
            sequence: 1 to 2**64 - 1, larger than in all records before, across restarts too: the time of day in
                microseconds will do.

        Raises:
            RecordError: the arguments make no record that `decode` would take.
        """
        unique = tuple(dict.fromkeys(addresses))
        _check(unique, sequence)
        text = _text(unique)
        if _HEAD.size + len(text) > MAX_RECORD_BYTES:
            raise RecordError("oversized", f"the addresses need {len(text)} bytes")
        signature = identity.private_key.sign(_signed(identity.peer_id.raw, sequence, text))
        return cls(identity.peer_id, sequence, unique, signature)

    def encode(self) -> bytes:
        """The bytes that `decode` reads, at most `MAX_RECORD_BYTES`."""
        return _HEAD.pack(VERSION, self.peer_id.raw, self.sequence, self.signature) + _text(self.addresses)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a record that came from anywhere, and verify it.

        Raises:
            RecordError: it is refused; `kind` tells how to count it.
        """
        if len(data) > MAX_RECORD_BYTES:
            raise RecordError("oversized", f"{len(data)} bytes, above {MAX_RECORD_BYTES}")
        if len(data) <= _HEAD.size:
            raise RecordError("garbage", f"{len(data)} bytes, too few")
        version, raw, sequence, signature = _HEAD.unpack_from(data)
        if version != VERSION:
            raise RecordError("garbage", f"unknown version {version}")
        try:
            peer_id = PeerId(raw)
        except IdentityError as error:
            raise RecordError("garbage", str(error)) from error
        text = data[_HEAD.size :]
        try:
            # First of all, so that nobody but the key's owner can make the parser work.
            Ed25519PublicKey.from_public_bytes(raw).verify(signature, _signed(raw, sequence, text))
        except InvalidSignature as error:
            raise RecordError("forged", f"{peer_id.short} has not signed it") from error
        addresses = _parse(text)
        _check(addresses, sequence)
        return cls(peer_id, sequence, addresses, signature)


def _signed(raw: bytes, sequence: int, text: bytes) -> bytes:
    return PREFIX + _SIGNED.pack(raw, sequence) + text


def _text(addresses: tuple[Address, ...]) -> bytes:
    return ",".join(map(str, addresses)).encode()


def _parse(text: bytes) -> tuple[Address, ...]:
    parts = text.split(b",", MAX_RECORD_ADDRESSES)
    try:
        addresses = tuple(Address.parse(part.decode()) for part in parts[:MAX_RECORD_ADDRESSES])
    except UnicodeDecodeError as error:
        raise RecordError("garbage", "an address is no text") from error
    except AddressError as error:
        raise RecordError("garbage", str(error)) from error
    if len(parts) > MAX_RECORD_ADDRESSES:
        raise RecordError("oversized", f"more than {MAX_RECORD_ADDRESSES} addresses")
    if _text(addresses) != text or len(set(addresses)) < len(addresses):
        raise RecordError("garbage", "the addresses are not in canonical form")
    return addresses


def _check(addresses: tuple[Address, ...], sequence: int) -> None:
    if not addresses:
        raise RecordError("garbage", "no address")
    if len(addresses) > MAX_RECORD_ADDRESSES:
        raise RecordError("oversized", f"{len(addresses)} addresses, above {MAX_RECORD_ADDRESSES}")
    if any("%" in address.host for address in addresses):
        raise RecordError("garbage", "a link-local address means nothing to others")
    if not 1 <= sequence <= MAX_SEQUENCE:
        raise RecordError("garbage", f"the sequence is {sequence}")
