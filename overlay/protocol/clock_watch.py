"""Has this machine slept? A suspended machine's monotonic clock stands still, and the clock of the world goes on. Pure.

What tells it exactly is a clock that counts suspended time and is never set: CLOCK_BOOTTIME on Linux, which is
CLOCK_MONOTONIC plus the time spent in suspend (clock_gettime(2)). The time of day serves where there is none, and is
worse in one way: somebody may set it. Setting it back is no sleep; setting it forward looks like one, and costs a look
at all paths that was not needed.
"""

from typing import Final

NOTICED: Final = 5.0
"""Seconds. A shorter sleep breaks no path (the mappings of NATs live for 30 s and more), and smaller corrections of the
time of day are frequent: ntpd steps from 0.128 s on."""


class ClockWatch:
    """Compares two clocks whenever it is asked to.

    Args:
        wall: seconds on the clock that counts suspended time.
        monotonic: seconds, at the same moment, on the one that does not.
    """

    def __init__(self, wall: float, monotonic: float) -> None:
        self._lead = wall - monotonic

    def observe(self, wall: float, monotonic: float) -> float:
        """Seconds slept since the last observation; 0.0 if it was no sleep worth the name.

        Each observation is compared with the one before, so that the slow drift of a time of day, which NTP allows
        0.5 ms per second, never adds up to a sleep.
        """
        lead = wall - monotonic
        jump, self._lead = lead - self._lead, lead
        return jump if jump >= NOTICED else 0.0
