"""The end of a connection: a goodbye that is said again, ever more rarely, until nobody can ask any more.

A CLOSE is not acknowledged. Who has not heard it goes on to send, and is told again: after the 1st, 2nd, 4th, 8th ...
packet (RFC 9000 section 10.2.1), so neither a flood nor two sides that say goodbye at once make us talk for ever.
"""

from typing import Final

from overlay.protocol.codes import CloseCode

LASTS: Final = 3
"""Probe timeouts for which a connection that has ended is remembered (RFC 9000 section 10.2)."""


class Goodbye:
    """What is said at the end, and for how long.

    Attributes:
        words: code and reason.
        is_due: whether it is to be said now.
        over_at: when all can be forgotten; None until `begin`.
    """

    def __init__(self) -> None:
        self.words = (CloseCode.NO_ERROR, "")
        self.is_due = False
        self.over_at: float | None = None
        self._heard = 0

    def begin(self, now: float, probe_timeout: float) -> None:
        """The time runs from the first call on."""
        if self.over_at is None:
            self.over_at = now + LASTS * probe_timeout

    def receive_packet(self) -> None:
        """The peer goes on sending."""
        self._heard += 1
        self.is_due |= not self._heard & (self._heard - 1)
