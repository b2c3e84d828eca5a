"""How many per second: a mean over the last seconds that forgets evenly. Pure."""

from math import exp
from typing import Final

LEAST_AGE: Final = 1.0
"""Seconds. What came within a shorter time is taken as that of a whole second, or a burst would count as a flood."""


class Rate:
    """A weighted mean: what came `t` seconds ago weighs e^(-t / seconds).

    The sum of the weights is that of the time since the first `add`, and of LEAST_AGE at least. So an even flow is
    told right from LEAST_AGE after its begin on, and one that ends has fallen to 37 % after `seconds`, to 5 % after
    three times as many. One that begins again after a pause climbs as slowly: the pause belongs to the mean.

    Args:
        seconds: how long the memory is; above 0.
    """

    def __init__(self, seconds: float = 5.0) -> None:
        self._seconds = seconds
        self._sum = 0.0
        """Of all that came, each by its weight at `_at`."""
        self._at = 0.0
        self._began: float | None = None

    def add(self, count: float, now: float) -> None:
        """So many came at `now`, which is no earlier than in the call before."""
        if self._began is None:
            self._began = now
        elif now != self._at:
            self._sum *= exp((self._at - now) / self._seconds)
        self._at = now
        self._sum += count

    def per_second(self, now: float) -> float:
        """The mean at `now`, which is no earlier than in the last call of `add`."""
        if self._began is None:
            return 0.0
        seconds = self._seconds
        weights = seconds * (1.0 - exp(-max(now - self._began, LEAST_AGE) / seconds))
        return self._sum * exp((self._at - now) / seconds) / weights
