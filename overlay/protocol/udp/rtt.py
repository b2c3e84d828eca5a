"""Round-trip time and the probe timeout that follows from it (RFC 9002 sections 5 and 6.2.1)."""

from typing import Final

INITIAL_RTT: Final = 0.333
"""Seconds (RFC 9002 section 6.2.2)."""
GRANULARITY: Final = 0.001
"""Seconds: what a timer is exact to (RFC 9002 section 6.1.2)."""
MAX_ACK_DELAY: Final = 0.025
"""Seconds for which a receiver may keep an acknowledgement back (RFC 9000 section 18.2)."""


class RoundTripTime:
    """The estimate for one path.

    Args:
        initial: seconds, to begin with: what the handshake took, if known.

    Attributes:
        latest: the last sample, in seconds; 0 before the first.
        smoothed, variance, minimum: as RFC 9002 section 5 defines them, in seconds.
        measured: whether there was a sample.
    """

    __slots__ = ("latest", "measured", "minimum", "smoothed", "variance")

    def __init__(self, initial: float = INITIAL_RTT) -> None:
        self.reset(initial)

    def reset(self, initial: float = INITIAL_RTT) -> None:
        """Begin anew, on another path."""
        self.latest = 0.0
        self.smoothed = initial
        self.variance = initial / 2
        self.minimum = initial
        self.measured = False

    def update(self, sample: float, delay: float) -> None:
        """Take a sample in (RFC 9002 section 5.3).

        Args:
            sample: seconds from sending the largest newly acknowledged packet to its ACK.
            delay: seconds for which the peer says that it kept the ACK back.
        """
        self.latest = sample
        if not self.measured:
            self.measured = True
            self.minimum = self.smoothed = sample
            self.variance = sample / 2
            return
        self.minimum = min(self.minimum, sample)
        delay = min(delay, MAX_ACK_DELAY)
        # A peer that exaggerates its delay can bring the estimate down to the minimum, and no further.
        adjusted = sample - delay if sample >= self.minimum + delay else sample
        self.variance += (abs(self.smoothed - adjusted) - self.variance) / 4
        self.smoothed += (adjusted - self.smoothed) / 8

    @property
    def probe_timeout(self) -> float:
        """Seconds of silence after which the peer is to be probed (RFC 9002 section 6.2.1)."""
        return self.smoothed + max(4 * self.variance, GRANULARITY) + MAX_ACK_DELAY

    @property
    def persistent_congestion(self) -> float:
        """Seconds over which all packets have to be lost to establish it (RFC 9002 section 7.6.1)."""
        return 3 * self.probe_timeout
