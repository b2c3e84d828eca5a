"""How often an idle path needs a PING: seldom enough to cost nothing, often enough for the NATs on the way. Pure.

A NAT forgets a mapping that was not used for some time, and that time can only be found out by waiting. RFC 4787
REQ-5 asks for two minutes at least; home routers are known that keep 30 s and less. So the interval begins where nearly
every NAT lives, and each idle gap of its own length that a PING survives makes it one step longer. A gap after which
the PING stayed unanswered was too long: back to the longest interval that is known to work, and for a while no other
try at what did not.

What was learnt is the network's, not the connection's: it has to outlive a connection, because a gap that was too long
ends one, and to be dropped when our own network has changed.
"""

from math import inf
from typing import Final

STEP: Final = 5.0
"""Seconds by which the interval grows: with an idle time-out of 30 s there is room for two steps above the first."""
REMEMBERED: Final = 600.0
"""Seconds for which a gap that was too long is not tried again: long enough that a NAT with little patience costs one
replaced path in ten minutes at most, short enough to find out that the network is another one."""
ROUNDING: Final = 0.01
"""Seconds by which a gap may miss the interval that caused it: it is a difference of two clock readings."""


class Keepalive:
    """The interval of one peer's idle path.

    Args:
        first: seconds to begin with; it never becomes shorter than that.
        most: seconds that it may reach. Five sixths of the idle time-out leave an answer the last sixth to arrive. If
            that is less than `first`, it is the interval, for good.
    """

    def __init__(self, first: float = 15.0, *, most: float) -> None:
        self._first = min(first, most)
        self._most = most
        self._good = self._interval = self._first
        self._too_long = most
        self._forget_at = -inf

    @property
    def interval(self) -> float:
        """Idle seconds after which a PING is due; `first` to `most`."""
        return self._interval

    def answered(self, idle: float, now: float) -> None:
        """The PING after an idle gap came back.

        Args:
            idle: seconds without a packet in either direction before that PING. A gap shorter than the interval
                proves nothing about it: there was traffic.
            now: the time.
        """
        if idle < self._interval - ROUNDING:
            return
        self._good = self._interval
        longer = min(self._interval + STEP, self._most)
        if longer < self._too_long or now >= self._forget_at:
            self._interval = longer

    def failed(self, idle: float, now: float) -> None:
        """The PING after an idle gap stayed unanswered, on a path that had worked before it.

        Args:
            idle: as for `answered`. A gap below `first` is not to blame: something else has broken the path. Nor is the
                interval, if the gap was a whole step longer: our own process did not run.
            now: the time.
        """
        if not self._first - ROUNDING <= idle < self._interval + STEP:
            return
        # A timer is never early, and mostly a little late: the interval has failed, and not only what came of it.
        self._too_long = min(idle, self._interval)
        self._forget_at = now + REMEMBERED
        if self._good >= self._too_long:
            # What used to work does not any more: another network, of which nothing is known.
            self._good = self._first
        self._interval = self._good
