"""The TLS bytes of a handshake, made reliable: what waits, what is on its way, what has arrived.

A handshake has hundreds of bytes, so each byte has a flag of its own: any order of sending, losing, acknowledging and
overlapping is then a slice, and there is no list of ranges to get wrong. Both directions are bounded by MAX_CRYPTO.
"""

from typing import Final

MAX_CRYPTO: Final = 16 * 1024
"""Bytes in one direction. An honest side needs under 1 KiB, and with a chain of certificates a few more."""

_WAITING, _FLYING, _ARRIVED = b"\0", b"\1", b"\2"


class OutgoingCrypto:
    """Our TLS bytes: taken for packets until all are acknowledged."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._flags = bytearray()

    @property
    def is_delivered(self) -> bool:
        """Whether the peer has acknowledged all there is."""
        return not self._flags.strip(_ARRIVED)

    def write(self, data: bytes) -> None:
        """Add bytes at the end."""
        self._data += data
        self._flags += bytes(len(data))

    def take(self, room: int) -> tuple[int, bytes] | None:
        """Up to `room` bytes that wait to be sent, with their offset, which are on their way from now on."""
        start = self._flags.find(_WAITING)
        if start < 0 or room <= 0:
            return None
        flags = self._flags[start : start + room]
        size = len(flags) - len(flags.lstrip(_WAITING))
        self._flags[start : start + size] = _FLYING * size
        return start, bytes(self._data[start : start + size])

    def lose(self, start: int, end: int) -> None:
        """What of these bytes has not arrived is to be sent again."""
        self._flags[start:end] = self._flags[start:end].replace(_FLYING, _WAITING)

    def acknowledge(self, start: int, end: int) -> None:
        """The peer has these bytes."""
        self._flags[start:end] = _ARRIVED * (end - start)

    def acknowledge_all(self) -> None:
        """The peer has everything, as its answer shows."""
        self.acknowledge(0, len(self._data))


class IncomingCrypto:
    """The peer's TLS bytes, put in order."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._flags = bytearray()
        self._consumed = 0

    def receive_piece(self, offset: int, data: bytes | bytearray | memoryview) -> bytes | None:
        """Take a piece in.

        Returns:
            What is next in order now, which may be nothing yet. None if all of the piece was there before, so that
            its sender has not heard that it arrived; or if it lies beyond MAX_CRYPTO, and is dropped.
        """
        end = offset + len(data)
        if end > MAX_CRYPTO:
            return None
        if end > len(self._data):
            missing = bytes(end - len(self._data))
            self._data += missing
            self._flags += missing
        if not self._flags[offset:end].strip(_ARRIVED):
            return None
        self._data[offset:end] = data
        self._flags[offset:end] = _ARRIVED * len(data)
        flags = self._flags[self._consumed :]
        start = self._consumed
        self._consumed += len(flags) - len(flags.lstrip(_ARRIVED))
        return bytes(self._data[start : self._consumed])
