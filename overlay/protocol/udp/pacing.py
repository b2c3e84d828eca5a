"""The pacer: a token bucket that lets whole bursts go at high rates and spreads single packets at low ones.

Three sizes, for three reasons:

- The **quantum** is what must have gathered before anything leaves: `QUANTUM_SECONDS` at the pacing rate, at least one
  datagram and at most `MAX_QUANTUM`, which is what one GSO send carries (46 packets of 1400 bytes). From 65 MB/s
  upwards every burst is a full one, and no acknowledgement that happens to wake us breaks it into crumbs; at 1.4 MB/s
  and below each packet leaves by itself, as a bottleneck with a short queue wants it (RFC 9002 section 7.7).
- The **depth** is what an idle sender finds: two quanta, or `DEPTH_SECONDS` at the rate where that is more.
- **Lateness** is made up for. Timers of an event loop fire up to a millisecond and a half late, and a busy loop comes
  round when it can. With a bucket of one burst, each timer at 200 MB/s would throw 4 of 5 bursts away; the controller
  would then measure the lower rate and pace at that, and so on downwards. So whoever comes later than `next_send_time`
  asked finds what has gathered meanwhile, up to `LATENESS_SECONDS`, as several bursts at once; the window still
  bounds the whole.

Before the rate is known it is infinite and only the window limits.
"""

import math
from typing import Final

MAX_QUANTUM: Final = 65_536
"""Bytes: the kernel takes no more in one GSO send."""
QUANTUM_SECONDS: Final = 0.001
"""Linux paces TCP in segments of about a millisecond as well (`tcp_tso_autosize`)."""
DEPTH_SECONDS: Final = 0.002
LATENESS_SECONDS: Final = 0.025
"""Ten times a bad turn of an event loop; a process that slept longer has no claim to what it missed."""
ROUNDING: Final = 8.0
"""Bytes. A wake-up at the very time that we named may miss the quantum by the clock's last bit, which after months is
2 ns or 2 bytes at 10 Gbit/s: without this the same time would be named again and again."""


def quantum(rate: float, datagram_size: int) -> int:
    """The bytes that leave together at a pacing rate in bytes per second."""
    return max(datagram_size, int(min(MAX_QUANTUM, rate * QUANTUM_SECONDS)))


class Pacer:
    """When how much may leave.

    Call `set_rate` when the controller's rate has changed; before sending, ask `burst`; after sending, call `sent`;
    while there is more to send than it allowed, wake up at `next_send_time`.
    """

    __slots__ = ("_datagram", "_depth", "_lateness", "_quantum", "_rate", "_tokens", "_updated_at", "_waiting")

    def __init__(self, datagram_size: int) -> None:
        self._datagram = datagram_size
        self._updated_at = -math.inf
        self._tokens = 0.0
        self._waiting = False
        """Whether the sender has been told a time since it last sent."""
        self._resize(math.inf)

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self._rate

    def set_rate(self, now: float, rate: float) -> None:
        """Use another rate from now on.

        Args:
            now: the time, in seconds.
            rate: bytes per second, above 0.
        """
        if rate != self._rate:
            self._refill(now)
            self._resize(rate)

    def set_datagram_size(self, size: int) -> None:
        """The largest datagram has changed."""
        self._datagram = size
        self._resize(self._rate)

    def burst(self, now: float) -> int:
        """How many bytes may leave now: 0, or at least a quantum."""
        if self._rate == math.inf:
            return MAX_QUANTUM
        self._refill(now)
        if self._tokens + ROUNDING < self._quantum:
            return 0
        return max(self._quantum, int(self._tokens))

    def sent(self, now: float, size: int) -> None:
        """So many bytes have left. More than `burst` allowed is a debt, as a probe's after a timeout is."""
        if self._rate != math.inf:
            self._refill(now)
            self._tokens = max(self._tokens - size, -float(self._depth))
            self._waiting = False

    def next_send_time(self, now: float) -> float | None:
        """When a quantum will have gathered, in seconds; None: it is there."""
        if self.burst(now):
            return None
        self._waiting = True
        return now + (self._quantum - self._tokens) / self._rate

    def _refill(self, now: float) -> None:
        if now > self._updated_at:
            most = self._lateness if self._waiting else max(self._depth, self._tokens)
            self._tokens = min(most, self._tokens + (now - self._updated_at) * self._rate)
            self._updated_at = now

    def _resize(self, rate: float) -> None:
        self._rate = rate
        self._quantum = quantum(rate, self._datagram)
        if rate == math.inf:
            self._depth = self._lateness = 2 * self._quantum
            self._tokens = float(self._depth)
        else:
            self._depth = self._quantum + max(self._quantum, int(rate * DEPTH_SECONDS))
            self._lateness = self._quantum + max(self._quantum, int(rate * LATENESS_SECONDS))
            self._tokens = min(self._tokens, self._lateness if self._waiting else self._depth)
