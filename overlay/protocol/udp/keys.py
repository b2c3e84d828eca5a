"""Packet protection: DATA packets sealed and opened, through any number of key updates.

Every packet is sealed on its own, so that it can be opened whatever happened to the others. Its header (see `wire`) is
the associated data; the nonce is the direction's IV xor the whole packet number (RFC 9001 section 5.3), of which 32
bits travel. A packet whose number was completed to another one than its sender's does not open; nothing has to compare
the two.

**Generations.** Each direction has keys 0, 1, 2, ..., each following from the one before by a one-way function; the
lowest bit of the generation travels with every packet as the key phase. A sender moves on by itself. A receiver finds
the other bit in a packet, tries the next keys and, once a packet has opened with them, moves on too, in both
directions. So the two are never more than one generation apart, and one bit is enough. Kept for receiving are:

    previous    for packets that the update has overtaken; thrown away 3 probe timeouts after it (RFC 9001 section 6.5)
    current
    next        precomputed: a packet that is refused at once and one that is refused after a derivation would tell
                who measures that an update was near (RFC 9001 section 6.3)

A side updates again only after a packet of its own current generation was acknowledged (section 6.1): then the peer
has moved on, and three generations are enough for whatever is still under way.
"""

import struct
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag

from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import VARINT_MAX, ProtocolViolation
from overlay.protocol.udp.aead import SECRET_SIZE, Aead, Keys
from overlay.protocol.udp.wire import DATA, DATA_HEADER, DATA_OVERHEAD, KEY_PHASE, full_number

EXPORT_LABEL: Final = b"EXPORTER-overlay-udp packet keys"
"""For TLS's exporter (RFC 8446 section 7.5). Its context is the dialler's connection id and then the acceptor's, so
that the keys belong to one connection."""
EXPORT_SIZE: Final = 2 * SECRET_SIZE
"""Bytes to export: the dialler's secret, then the acceptor's."""
UPDATE_AFTER: Final = 2**22
"""Packets sealed with one key. Half of what AES-GCM allows, so there is time until the peer acknowledges. With
ChaCha20-Poly1305, which needs none, too: a path that is never taken is a path that fails."""
RETAINED: Final = 3
"""Probe timeouts for which the previous keys are kept."""

_HEADER = DATA_HEADER.size
_FIRST_AND_NUMBER = struct.Struct("!B8xI")
"""Of a DATA packet's header, what opening it needs."""
_MASK = 0xFFFF_FFFF

Bytes = bytes | bytearray | memoryview


class AeadLimitReached(Exception):
    """As many packets were sealed with one key as are safe, and the last key update was never acknowledged.

    Or all packet numbers are used up. Nothing more may be sent on this connection: it ends without a goodbye.
    """


class Protection:
    """Seals and opens the DATA packets of one connection.

    Args:
        aead: what TLS agreed on.
        sending: SECRET_SIZE bytes, our direction's secret.
        receiving: the peer's.
        destination: the peer's connection id.
        update_after: packets to seal with one key; UPDATE_AFTER but for tests.

    Attributes:
        probe_timeout: seconds; kept up to date by whoever measures the path, for the retention of previous keys.
        forged: packets that did not open: forged, damaged, or of keys that are gone.
    """

    def __init__(
        self, aead: Aead, sending: bytes, receiving: bytes, destination: bytes, *, update_after: int = UPDATE_AFTER
    ) -> None:
        self.probe_timeout = 1.0
        self.forged = 0
        self._aead = aead
        self._update_after = min(update_after, aead.confidentiality // 2)
        self._sending = Keys(aead, sending)
        self._sealed = 0
        self._first_sealed: int | None = None
        self._acknowledged = False
        self._next_number = 0
        self._previous: Keys | None = None
        self._discard_at = 0.0
        self._current = Keys(aead, receiving)
        self._next = self._current.following()
        self._first_opened = 0
        self.destination = destination

    @property
    def destination(self) -> bytes:
        """The peer's connection id that packets are sealed for."""
        return self._destination

    @destination.setter
    def destination(self, destination: bytes) -> None:
        self._destination = destination
        self._prefix = bytes((DATA | self._sending.phase,)) + destination

    @property
    def generation(self) -> int:
        """How often the keys that we seal with were updated."""
        return self._sending.generation

    @property
    def can_update(self) -> bool:
        """Whether a packet sealed with the keys in use was acknowledged, so that there may be new ones."""
        # The peer answers with its own new keys, so its acknowledgement has made us move on in its direction, too; only
        # one that breaks the rules acknowledges with old ones, and must not get us two generations ahead.
        return self._acknowledged and self._sending.generation == self._current.generation

    def update_keys(self) -> None:
        """Seal with the next keys from now on. `seal_burst` does so by itself when it is time.

        Raises:
            RuntimeError: no packet sealed with the keys in use was acknowledged yet.
        """
        if not self.can_update:
            raise RuntimeError("no packet sealed with the keys in use was acknowledged yet")
        self._seal_with(self._sending.following())

    def receive_acknowledgement(self, largest: int) -> None:
        """The peer's ACK says that it has packet `largest`, and none beyond."""
        if self._first_sealed is not None and largest >= self._first_sealed:
            self._acknowledged = True

    def seal_burst(self, first_number: int, payloads: Sequence[Bytes]) -> bytes:
        """Seal payloads as packets `first_number`, `first_number` + 1, and so on.

        Returns:
            The datagrams, one behind the other. With all payloads but the last of one size one GSO send takes them;
            a segment has DATA_OVERHEAD bytes more than a payload.

        Raises:
            AeadLimitReached: see there.
            ValueError: a number would be used twice, which would give away the key.
        """
        end = first_number + len(payloads)
        if first_number < self._next_number:
            raise ValueError(f"packet number {first_number} is used up")
        if self._sealed + len(payloads) > self._update_after and self.can_update:
            self._seal_with(self._sending.following())
        self._sealed += len(payloads)
        if self._sealed > self._aead.confidentiality or end > VARINT_MAX:
            raise AeadLimitReached
        self._next_number = end
        if self._first_sealed is None:
            self._first_sealed = first_number
        encrypt, iv, prefix = self._sending.encrypt, self._sending.iv, self._prefix
        # Into one buffer with `encrypt_into` it takes a third longer than with one copy at the end.
        parts: list[bytes] = []
        append = parts.append
        for number, payload in zip(range(first_number, end), payloads, strict=True):
            header = prefix + (number & _MASK).to_bytes(4, "big")
            append(header)
            append(encrypt((iv ^ number).to_bytes(12, "big"), payload, header))
        return b"".join(parts)

    def open(self, datagram: Bytes, largest_received: int, now: float) -> tuple[int, bytes] | None:
        """Open one DATA packet; whether it is a replay is for the caller to know.

        Args:
            datagram: the packet. Its destination id is not looked at: who finds the connection by it knows it.
            largest_received: the largest packet number that was opened so far, -1 at the start.
            now: the clock, in seconds.

        Returns:
            Its number and payload; None if it does not open.

        Raises:
            ProtocolViolation: as for `open_burst`.
        """
        opened = self.open_burst(datagram, len(datagram), largest_received, now) if len(datagram) else ()
        return opened[0] if opened else None

    def open_burst(self, datagrams: Bytes, segment: int, largest_received: int, now: float) -> list[tuple[int, bytes]]:
        """Open what one GRO read returned: packets of `segment` bytes, the last one may be shorter.

        Returns:
            Number and payload of each that opens, in the order in which they came.

        Raises:
            ProtocolViolation: the peer updates its keys without waiting for us; or more packets were forged than the
                cipher bears, and the connection must end before one opens.
        """
        opened: list[tuple[int, bytes]] = []
        if segment < DATA_OVERHEAD:
            return opened
        append, read, mask, header_size = opened.append, _FIRST_AND_NUMBER.unpack_from, _MASK, _HEADER
        decrypt, iv, phase = self._current.decrypt, self._current.iv, self._current.phase
        expected = largest_received + 1
        for start in range(0, len(datagrams) - DATA_OVERHEAD + 1, segment):
            body = start + header_size
            first, number = read(datagrams, start)
            number = expected if number == expected & mask else full_number(number, expected - 1)
            sealed, header = datagrams[body : start + segment], datagrams[start:body]
            if first & KEY_PHASE == phase:
                try:
                    payload = decrypt((iv ^ number).to_bytes(12, "big"), sealed, header)
                except InvalidTag:
                    self._count_forged()
                    continue
            else:
                other = self._open_other(number, sealed, header, now)
                if other is None:
                    continue
                payload = other
                decrypt, iv, phase = self._current.decrypt, self._current.iv, self._current.phase
            append((number, payload))
            if number >= expected:
                expected = number + 1
        return opened

    def _open_other(self, number: int, sealed: Bytes, header: Bytes, now: float) -> bytes | None:
        """Open a packet of the other key phase, which is the previous generation's or the next one's."""
        if self._previous is not None and now >= self._discard_at:
            self._previous = None
        # Numbers grow with generations, so one comparison tells which it can be.
        past = self._previous is not None and number < self._first_opened
        keys = self._previous if past and self._previous is not None else self._next
        try:
            payload = keys.decrypt((keys.iv ^ number).to_bytes(12, "big"), sealed, header)
        except InvalidTag:
            self._count_forged()
            return None
        if not past:
            self._receive_update(number, now)
        return payload

    def _receive_update(self, number: int, now: float) -> None:
        if self._sending.generation == self._current.generation:
            # It must wait for our acknowledgement, which we would have sealed with these.
            if self._first_sealed is None:
                raise ProtocolViolation(CloseCode.STATE_ERROR, "keys were updated before we acknowledged the last ones")
            self._seal_with(self._sending.following())
        self._previous, self._current, self._next = self._current, self._next, self._next.following()
        self._first_opened = number
        self._discard_at = now + RETAINED * self.probe_timeout

    def _seal_with(self, keys: Keys) -> None:
        self._sending = keys
        self._sealed = 0
        self._first_sealed = None
        self._acknowledged = False
        self.destination = self._destination

    def _count_forged(self) -> None:
        self.forged += 1
        if self.forged >= self._aead.integrity:
            raise ProtocolViolation(CloseCode.AEAD_LIMIT_REACHED, "too many forged packets for the cipher")
