"""A timer for a deadline that moves with every packet, mostly away.

To arm a timer of the loop anew costs more than to let it fire in vain, so it is left alone as long as it does not fire
too late; when it fires too early it arms itself again.
"""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

clock = time.monotonic
"""The connections' clock, in seconds. asyncio's loop has the same; uvloop's counts the same time in whole ms and stands
still within a turn, which is too coarse for a pacer: it would let 16 packets go in each ms."""

TICK: Final = 0.001
"""Seconds. No loop fires more precisely, and delays are rounded up to it: asyncio does so by itself, but uvloop rounds
to the nearest, and would come round in vain again and again within the half of a tick that is left (measured: 5,600
wake-ups per second instead of 650, for a flow paced at 20 MB/s). What a pacer misses by that it makes up for."""


class LazyTimer:
    """Calls back when a deadline has come.

    Args:
        deadline: tells it: a time of `clock`, None for never.
        callback: gets the time, which is never before the deadline that it was armed for.
    """

    __slots__ = ("_armed_for", "_callback", "_deadline", "_handle", "_loop")

    def __init__(self, deadline: Callable[[], float | None], callback: Callable[[float], None]) -> None:
        self._deadline = deadline
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._armed_for = 0.0

    def arm(self) -> None:
        """The deadline may have moved: make sure that the callback does not come too late."""
        at = self._deadline()
        if at is None:
            return
        if self._handle is not None:
            if self._armed_for <= at:
                return
            self._handle.cancel()
        self._armed_for = at
        delay = math.ceil((at - clock()) / TICK) * TICK
        self._handle = self._loop.call_later(max(0.0, delay), self._fired)

    def cancel(self) -> None:
        """Call back no more, until it is armed again."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fired(self) -> None:
        self._handle = None
        # The loop's clock may stand a tick before the deadline that it woke us for.
        now = max(clock(), self._armed_for)
        at = self._deadline()
        if at is not None and at > now:
            self.arm()
        else:
            self._callback(now)
