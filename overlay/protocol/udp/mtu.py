"""How large a datagram the path carries (DPLPMTUD, RFC 8899), from 300 bytes to what UDP can carry at all.

Probes are packets of padding: what they find costs no user's byte, and they are acknowledged like any other packet. The
search goes up by a table of sizes that real links have. A table and not halving, as nearly every path is one of
these: Ethernet is found exactly by its third success. Only between two of them is the interval halved.

    searching --- largest size tried, or the interval is closed ---> done --- RAISE_AFTER ---> searching
        ^                                                              |
        +---------- black hole: back to the base, and a search --------+

**Black hole.** A route that changes under way may carry less, and nobody tells (RFC 8899 section 4.3). What tells is
that large packets are lost one after the other while a smaller one, sent later, arrives. That can be chance; so the
first probe after the fall is of the old size, and a false alarm costs two round trips of small packets. The sender
helps: from the second probe timeout on, one of two probes is small.

All sizes are UDP payloads in bytes.
"""

from enum import Enum
from typing import Final

from overlay.protocol.udp.wire import MAXIMUM_DATAGRAM, MINIMUM_DATAGRAM

PLATEAUS: Final = (1200, 1452, 1472, 8952, 8972, 65_487)
"""QUIC's minimum, which nearly all paths carry; Ethernet with IPv6 and IPv4; jumbo frames with both; loopback."""
ATTEMPTS: Final = 3
"""Probes of one size that have to be lost (MAX_PROBES of RFC 8899 section 5.1.2)."""
FIRST_PATIENCE: Final = 15.0
"""Seconds for a probe to be acknowledged while no round trip is measured (PROBE_TIMER of RFC 8899 section 5.1.1)."""
RAISE_AFTER: Final = 600.0
"""Seconds from the end of a search to the next (PMTU_RAISE_TIMER of RFC 8899 section 5.1.1)."""
RAISE_AFTER_BLACK_HOLE: Final = 60.0
"""The same where the path has just changed: it may change back."""
LOST_IN_A_ROW: Final = 10
"""Large packets lost without one that arrives, while small ones do: at 30 % loss six times in a million by chance."""
LOST_WITH_TIMEOUTS: Final = 3
"""The same after two probe timeouts: large probes were among them."""


class Phase(Enum):
    """Where the search is."""

    SEARCHING = "searching"
    DONE = "done"


class MtuSearch:
    """The search on one path.

    Args:
        size: what the path is known to carry: the base, to which a black hole leads back.
        largest: what the local interface or the user allows.

    Attributes:
        size: of the largest datagram that may be sent.
        base: what every link on the path is believed to carry.
        black_holes: how many were found.
    """

    def __init__(self, size: int = MINIMUM_DATAGRAM, largest: int = MAXIMUM_DATAGRAM) -> None:
        self.size = self.base = size
        self.black_holes = 0
        self._largest = largest
        self._too_large = largest + 1
        """The smallest size that is believed not to pass."""
        self._first: int | None = None
        """What is tried before everything else: the size before a black hole."""
        self._phase = Phase.SEARCHING
        self._raise_after = RAISE_AFTER
        self._raise_at = 0.0
        self._probing: int | None = None
        self._gives_up_at = 0.0
        self._failures = 0
        self._lost = 0
        """Datagrams lost in succession that are larger than the base."""
        self._smallest_lost = largest + 1
        """The size of the smallest of them: what is as large and arrives refutes the suspicion."""

    def probe_to_send(self, now: float) -> int | None:
        """The size of a probe that is to leave now; `probe_sent` comes next."""
        if self._probing is not None:
            if now < self._gives_up_at:
                return None
            self.probe_lost(self._probing)
        if self._phase is Phase.DONE:
            if now < self._raise_at:
                return None
            self._phase = Phase.SEARCHING
            self._too_large = self._largest + 1
        candidate = self._candidate()
        if candidate is None:
            self._phase = Phase.DONE
            self._raise_at = now + self._raise_after
            self._raise_after = RAISE_AFTER
        return candidate

    def probe_sent(self, size: int, now: float, patience: float) -> None:
        """A probe has left; after `patience` seconds it counts as lost."""
        self._probing = size
        self._gives_up_at = now + patience

    def probe_acknowledged(self, size: int) -> bool:
        """A probe has arrived, even if late; whether `size` has grown."""
        if size == self._probing:
            self._probing = None
            self._failures = 0
        if size == self._first:
            self._first = None
        if size >= self._too_large:
            # It was given up too early, so nothing is known of what is larger either.
            self._too_large = self._largest + 1
        if size <= self.size:
            return False
        self.size = size
        self._forget_lost()
        return True

    def probe_lost(self, size: int) -> None:
        """A probe has not arrived."""
        if size != self._probing:
            return
        self._probing = None
        self._failures += 1
        if size == self._first:
            # One is enough: the losses that led here were of this size too.
            self._first = None
            self._fail(size)
        elif self._failures >= ATTEMPTS:
            self._fail(size)

    def refused(self, size: int) -> bool:
        """The local system would not send so much (EMSGSIZE); whether `size` has shrunk."""
        self._fail(size)
        if size > self.size:
            return False
        self.base = min(self.size, self.base)
        self._restart()
        return True

    def packet_acknowledged(self, size: int) -> None:
        """A datagram that is no probe has arrived."""
        if size >= self._smallest_lost:
            self._forget_lost()

    def packets_lost(self, size: int, count: int) -> None:
        """Datagrams that are no probes are lost."""
        if size > self.base:
            self._lost += count
            self._smallest_lost = min(self._smallest_lost, size)

    def small_acknowledged(self, size: int, timeouts: int) -> bool:
        """Datagrams have arrived; to be asked when it is known what was lost before them.

        Args:
            size: of the largest.
            timeouts: how many probe timeouts came one after the other before.

        Returns:
            Whether that tells of a black hole, and `size` has shrunk.
        """
        limit = LOST_WITH_TIMEOUTS if timeouts >= 2 else LOST_IN_A_ROW
        if self._lost < limit or size >= self._smallest_lost or self.size <= self.base:
            return False
        self.black_holes += 1
        self._first = self.size
        self._raise_after = RAISE_AFTER_BLACK_HOLE
        self._restart()
        return True

    def reset(self) -> None:
        """The path is another one."""
        self._too_large = self._largest + 1
        self._first = None
        self._restart()

    def next_timeout(self) -> float | None:
        """When `probe_to_send` is to be asked again; 0 means now."""
        if self._probing is not None:
            return self._gives_up_at
        if self._phase is Phase.DONE:
            return self._raise_at if self._largest - self.size > _step(self.size) else None
        return 0.0

    def _restart(self) -> None:
        self.size = self.base
        self._phase = Phase.SEARCHING
        self._probing = None
        self._failures = 0
        self._forget_lost()

    def _forget_lost(self) -> None:
        self._lost = 0
        self._smallest_lost = self._largest + 1

    def _fail(self, size: int) -> None:
        """No datagram of this size passes."""
        self._failures = 0
        self._too_large = min(self._too_large, size)
        if self._probing is not None and self._probing >= size:
            self._probing = None

    def _candidate(self) -> int | None:
        """The next size to try; None when the interval is closed."""
        if self._first is not None:
            return self._first
        size, limit = self.size, self._too_large
        step = _step(size)
        if limit - size <= step:
            return None
        for plateau in PLATEAUS:
            if size < plateau < limit:
                return plateau
        if size in PLATEAUS and limit - size > 2 * step:
            # Most likely it is this one exactly: find out by one probe instead of by halving ten times.
            return size + step
        return (size + limit) // 2


def _step(size: int) -> int:
    """How exact the search is: what is less than 2 % is not worth the probes."""
    return max(8, size // 64)
