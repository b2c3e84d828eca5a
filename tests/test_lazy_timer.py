"""The timer of a deadline that moves: never too late, seldom in vain, never before its time."""

import asyncio
import math
from collections.abc import Callable

import pytest
import uvloop

from overlay.transports import lazy_timer
from overlay.transports.lazy_timer import TICK, LazyTimer, clock

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


class StillLoop:
    """Takes down what is asked of it; time moves when it is told.

    Attributes:
        now: what the clock shows.
        armed: the delays of the timers that were set.
        cancelled: how many were taken back.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.armed: list[float] = []
        self.cancelled = 0
        self._fire: Callable[[], None] | None = None

    def call_later(self, delay: float, callback: Callable[[], None]) -> "StillLoop":
        self.armed.append(delay)
        self._fire = callback
        return self

    def cancel(self) -> None:
        self.cancelled += 1
        self._fire = None

    def fire(self) -> None:
        assert self._fire is not None
        fire, self._fire = self._fire, None
        fire()


class Watched:
    """A timer on a loop that stands still.

    Attributes:
        at: the deadline.
        calls: when it called back.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = StillLoop()
        self.at: float | None = None
        self.calls: list[float] = []
        monkeypatch.setattr(lazy_timer, "clock", lambda: self.loop.now)
        self.timer = LazyTimer(lambda: self.at, self.calls.append)
        self.timer._loop = self.loop  # type: ignore[assignment]

    def arm(self, after: float | None) -> None:
        self.at = None if after is None else self.loop.now + after
        self.timer.arm()


async def test_a_deadline_that_moves_away_sets_no_new_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one fires in vain, once, and arms itself for what is left."""
    it = Watched(monkeypatch)
    it.arm(0.5)
    for _ in range(100):
        it.loop.now += 0.001
        it.arm(0.5)
    assert it.loop.armed == [pytest.approx(0.5, abs=1.5 * TICK)]
    it.loop.now += 0.4
    it.loop.fire()
    assert it.calls == []
    assert it.loop.armed[1:] == [pytest.approx(0.1, abs=1.5 * TICK)]
    it.loop.now = it.at or 0.0
    it.loop.fire()
    assert it.calls == [it.at]


async def test_a_deadline_that_comes_nearer_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the old timer is taken back."""
    it = Watched(monkeypatch)
    it.arm(0.5)
    it.arm(0.1)
    assert it.loop.armed == [pytest.approx(0.5, abs=1.5 * TICK), pytest.approx(0.1, abs=1.5 * TICK)]
    assert it.loop.cancelled == 1


async def test_delays_are_whole_ticks_rounded_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that rounds down would come round in vain until the time has come."""
    for after in (0.0001, 0.0004, 0.0006, 0.001, 0.0123):
        it = Watched(monkeypatch)
        it.arm(after)
        [delay] = it.loop.armed
        # A rounding error may cost a tick.
        assert after - 1e-9 <= delay < after + 1.5 * TICK
        assert math.isclose(delay / TICK, round(delay / TICK))


async def test_what_is_late_is_not_delayed_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the next turn's."""
    it = Watched(monkeypatch)
    it.arm(-5.0)
    assert it.loop.armed == [0.0]


async def test_without_a_deadline_nothing_is_armed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a timer that was taken back can be armed again."""
    it = Watched(monkeypatch)
    it.arm(None)
    assert it.loop.armed == []
    it.timer.cancel()
    it.arm(0.1)
    it.timer.cancel()
    assert it.loop.cancelled == 1
    it.arm(0.2)
    assert len(it.loop.armed) == 2


async def test_a_loop_that_wakes_us_early_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clock stands a tick behind: the core is told the time that it asked for, or it would ask again at once."""
    it = Watched(monkeypatch)
    it.arm(0.1)
    it.loop.now += 0.0999
    it.loop.fire()
    assert it.calls == [it.at]


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_a_fraction_of_a_tick_is_waited_for_asleep(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """On real loops: hundreds of turns would pass otherwise."""
    asked = 0

    async def wait(after: float) -> None:
        called = asyncio.Event()
        at = clock() + after
        spoken: list[float] = []

        def deadline() -> float | None:
            nonlocal asked
            asked += 1
            # As a pacer: it goes on to name the same time until that has passed.
            return at if clock() < at else None

        def fired(now: float) -> None:
            spoken.append(now)
            if clock() < at:
                timer.arm()
            else:
                called.set()

        timer = LazyTimer(deadline, fired)
        timer.arm()
        async with asyncio.timeout(10):
            await called.wait()
        assert spoken[-1] >= at

    async def main() -> None:
        for number in range(1, 20):
            await wait(number * 50e-6)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    assert asked <= 19 * 6
