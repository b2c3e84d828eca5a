"""The phases of BBR with their factors, and the length of their cycle (draft-ietf-ccwg-bbr, section 5.6.1)."""

from enum import Enum
from typing import Final


class Phase(Enum):
    """What BBR is doing: its factor on the bandwidth for pacing, and on the BDP for the window."""

    STARTUP = ("startup", 2.77, 2.0)
    DRAIN = ("drain", 0.5, 2.0)
    DOWN = ("down", 0.9, 1.5)
    CRUISE = ("cruise", 1.0, 1.5)
    REFILL = ("refill", 1.0, 1.5)
    UP = ("up", 1.25, 1.75)
    PROBE_RTT = ("probe-rtt", 1.0, 0.5)

    def __init__(self, label: str, pacing: float, window: float) -> None:
        self.label = label
        self.pacing = pacing
        self.window = window


PACING_MARGIN: Final = 0.99
"""A little below the estimate, so that a queue of our own making empties by itself."""
GROWTH: Final = 1.25
"""A round that delivers less than this times the round before it has found the bandwidth ..."""
UP_GROWTH: Final = 1.15
"""The same in UP, which sends 1.25 times as fast less the margin and can find no more than that."""
FULL_ROUNDS: Final = 3
"""... if that happens this often."""
DRAIN_ROUNDS: Final = 3
"""Half the rate empties a queue of 1.5 BDP in as many rounds; one that still stands then is not our own."""
BETA: Final = 0.7
"""What an overrun leaves of a bound."""
HEADROOM: Final = 0.85
"""Of the most that went well: the rest is for flows that are just beginning."""
BOOST: Final = 2.0
"""UP sends so many times faster at most for the sake of losses."""
MINIMUM_PACKETS: Final = 4
"""The least window, so that a delayed acknowledgement stops nothing (the draft's MinPipeCwnd)."""
CYCLE_ROUNDS: Final = 8
CYCLE_ROUNDS_RANDOM: Final = 5
CYCLE_ROUNDS_OVERRUN: Final = 60
"""After a probe that cost losses, others' too, the next waits longer (the draft's 63 rounds), within the seconds."""
CYCLE_SECONDS: Final = 2.0
CYCLE_SECONDS_RANDOM: Final = 1.0
"""Random parts, or two flows would probe together for ever and each take the other's queue for the path's limit."""
PROBE_RTT_SECONDS: Final = 0.2
PROBE_RTT_ROUNDS: Final = 10
"""PROBE_RTT lasts 200 ms so that flows that share a bottleneck drain it together, but ten round trips are enough."""
