"""Weather of netem's, as tc-netem(8) has it, each with a look at the machines that shows that it was there.

A file that arrives whole proves nothing about weather that was not. What netem counts or a kernel notices is read from
there; what neither does, a train of pings shows.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from lab import LabError

from vm.pair import Pair

PINGS = 100
"""In one train: so many that weather which befalls one of four is not missed."""


@dataclass(frozen=True, slots=True)
class Weather:
    """What both machines do to what they send.

    Attributes:
        netem: as the tool has it. Each with a delay: on a link without any, nothing can be overtaken, and a loss costs
            nothing.
        shows: says what was seen of it on the machines, while it lasts; raises LabError if it was not there.
    """

    netem: str
    shows: Callable[[Pair], str]


def delayed(pair: Pair) -> str:
    """The fastest of many round trips takes both delays, without their jitter."""
    times = [float(time) for time in re.findall(r" time=([\d.]+) ms", _pings(pair))]
    return _seen(min(times) >= 90, f"the fastest of {len(times)} pings took {min(times):.1f} ms")


def lost(pair: Pair) -> str:
    """Netem counts what it drops."""
    dropped = pair.alice.packets_dropped() + pair.bob.packets_dropped()
    return _seen(dropped > 0, f"{dropped} packets were dropped")


def reordered(pair: Pair) -> str:
    """Answers overtake each other."""
    numbers = [int(number) for number in re.findall(r" icmp_seq=(\d+) ", _pings(pair))]
    overtaken = sum(number < earlier for earlier, number in pairwise(numbers))
    return _seen(overtaken > 0, f"{overtaken} of {len(numbers)} pings were overtaken")


def corrupted(pair: Pair) -> str:
    """A kernel drops what comes with a wrong checksum, and counts it."""
    errors = pair.alice.checksum_errors() + pair.bob.checksum_errors()
    return _seen(errors > 0, f"{errors} packets had a wrong checksum")


WEATHER = {
    "delay-and-jitter": Weather("delay 50ms 5ms", delayed),
    "loss": Weather("delay 10ms loss 5%", lost),
    "reordering": Weather("delay 20ms reorder 75% 25%", reordered),
    "corruption": Weather("delay 10ms corrupt 3%", corrupted),
}


def _pings(pair: Pair) -> str:
    return pair.alice.run("ping", "-c", str(PINGS), "-i", "0.01", "-W", "5", pair.bob.data)


def _seen(enough: bool, what: str) -> str:
    if not enough:
        raise LabError(f"the weather was not there: {what}")
    return what
