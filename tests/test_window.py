"""How far windows grow: with the rate of the reader and the round trip, and no further. A stepped clock."""

import math
from collections.abc import Callable

import pytest

from overlay.protocol.budget import Budget, SessionLimits
from overlay.protocol.frames import FrameReader, Window, opening
from overlay.protocol.liveness import Progress
from overlay.protocol.session import SessionCore
from overlay.protocol.stream import Priority, StreamCore
from overlay.protocol.window import FREE, HEADROOM, INTERVAL, TURN, UNLIMITED, Reading, Sizing

KIB = 1024
LIMIT = 4 * KIB * KIB


def path(round_trip: float | None) -> Callable[[], Progress]:
    return lambda: Progress(0.0, 0.1, rtt_min=round_trip)


class Transfer:
    """A sender that always has more, a path and a reader, in steps of the time that one piece takes to be read.

    Args:
        rate: bytes per second that the reader reads; what it has not come to waits in front of it.
        delay: seconds from credit to the first byte that it lets go, and no less.
        watch: what the connection knows of its path.
    """

    PIECE = 8 * KIB

    def __init__(self, *, rate: float, delay: float, watch: Callable[[], Progress] | None) -> None:
        limits = SessionLimits(window=16 * KIB, stream_window=LIMIT)
        budget = Budget(64 * LIMIT)
        assert budget.reserve(limits.streams * limits.window)
        self.core = SessionCore(even=False, limits=limits, budget=budget)
        self.now = 1.0
        self.step = self.PIECE / rate
        self.delay = delay
        self.watch = watch
        self.sent: dict[int, int] = {}
        self.credits: list[tuple[float, int, int]] = []
        self.limits: dict[int, int] = {}

    def open(self, stream: int) -> StreamCore:
        name = opening("test", Priority.BULK)
        self.core.receive_stream(stream, 0, name, self.now, self.watch)
        self.sent[stream], self.limits[stream] = len(name), self.core.limits.window
        [opened] = self.core.take_opened()
        return opened

    def run(self, seconds: float) -> int:
        """How many bytes were read."""
        until, total = self.now + seconds, 0
        while self.now < until:
            self.now += self.step
            while self.credits and self.credits[0][0] <= self.now:
                _, stream, limit = self.credits.pop(0)
                self.limits[stream] = limit
            for stream, offset in self.sent.items():
                size = min(self.PIECE // len(self.sent), self.limits[stream] - offset)
                if size > 0:
                    self.core.receive_stream(stream, offset, bytes(size), self.now, self.watch)
                    self.sent[stream] += size
                    total += len(self.core.read(self.core.streams[stream], size))
            self.core.handle_timeout(self.now)
            for frame in FrameReader(stream_data=False).receive_data(b"".join(self.core.control_to_send(1))):
                if isinstance(frame, Window):
                    self.credits.append((self.now + self.delay, frame.stream, frame.limit))
        return total


def test_window_of_a_slow_reader_nearby_stays_small() -> None:
    """40 MB/s, 0.5 ms: what a window of the largest size held back would take 100 ms to pass."""
    transfer = Transfer(rate=40e6, delay=0.0005, watch=path(0.0004))
    stream = transfer.open(0)
    assert transfer.run(2.0) > 0.95 * 2.0 * 40e6
    assert stream.receiving.window <= 2 * HEADROOM * 40e6 * 0.0005


@pytest.mark.parametrize(("rate", "delay"), [(125e6, 0.1), (10e6, 0.1), (500e6, 0.002), (1e6, 0.6)])
def test_window_lets_the_path_be_full_after_some_round_trips(rate: float, delay: float) -> None:
    transfer = Transfer(rate=rate, delay=delay, watch=path(delay))
    stream = transfer.open(0)
    transfer.run(14 * max(delay, INTERVAL))
    most = min(rate, LIMIT / delay)
    assert transfer.run(10 * delay) >= 0.9 * most * 10 * delay
    assert stream.receiving.window <= LIMIT


def test_loops_that_are_slow_to_come_round_get_a_larger_window_than_the_path_needs() -> None:
    """The kernel's round trip, of TCP, is without them."""
    transfer = Transfer(rate=200e6, delay=0.01, watch=path(0.00005))
    transfer.open(0)
    transfer.run(0.3)
    assert transfer.run(0.2) >= 0.9 * 200e6 * 0.2


def test_window_has_no_limit_but_the_largest_where_the_path_is_not_known() -> None:
    for watch in (None, path(None)):
        transfer = Transfer(rate=100e6, delay=0.001, watch=watch)
        stream = transfer.open(0)
        transfer.run(1.0)
        assert stream.receiving.window == LIMIT


def test_streams_of_one_session_share_what_the_path_needs() -> None:
    transfer = Transfer(rate=40e6, delay=0.0005, watch=path(0.0004))
    streams = [transfer.open(stream) for stream in (0, 2, 4, 6)]
    transfer.run(1.0)
    assert all(stream.receiving.window <= 2 * HEADROOM * 40e6 * 0.0005 for stream in streams)


def test_path_that_became_longer_gets_a_larger_window() -> None:
    transfer = Transfer(rate=50e6, delay=0.0005, watch=path(0.0004))
    transfer.open(0)
    transfer.run(0.5)
    transfer.delay, transfer.watch = 0.05, path(0.05)
    transfer.run(1.0)
    assert transfer.run(1.0) >= 0.9 * 50e6


def test_rate_is_measured_over_an_interval_and_not_in_a_burst() -> None:
    reading = Reading()
    assert reading.within(TURN, 0, 1.0) == 0
    assert reading.within(TURN, 1_000_000, 1.0 + INTERVAL / 2) == 0
    assert reading.within(0.5, 1_000_000, 1.0 + INTERVAL) == 0
    assert reading.within(2**-11, 1 << 20, 1.0 + 2**-5) == 1 << 14


def test_round_trip_that_is_longer_than_the_interval_is_waited_for() -> None:
    reading = Reading()
    reading.within(0.1, 0, 1.0)
    assert reading.within(0.1, 50_000, 1.05) == 0
    assert reading.within(0.1, 100_000, 1.125) == 80_000


def test_credit_is_timed_from_when_it_left_to_the_first_byte_that_needed_it() -> None:
    reading = Reading()
    assert reading.used(100, 1.0) == math.inf
    reading.granted(100, 1.0)
    reading.granted(200, 1.5)
    assert reading.used(100, 2.0) == math.inf
    assert reading.used(101, 3.0) == 2.0
    assert reading.used(300, 4.0) == math.inf


def test_path_is_asked_no_more_often_than_the_rate_is_measured() -> None:
    asked = []

    def watch() -> Progress:
        asked.append(1)
        return Progress(0.0, 0.1, rtt_min=0.001)

    sizing, reading = Sizing(), Reading()
    for piece in range(1000):
        sizing.received(reading, piece, piece, 1.0 + piece * INTERVAL / 100, watch)
    assert len(asked) == 10
    assert sizing.enough == FREE


def test_unknown_path_lifts_the_limit_for_good() -> None:
    sizing, reading = Sizing(), Reading()
    sizing.received(reading, 1, 1, 1.0, None)
    sizing.received(reading, 2, 2, 2.0, path(0.001))
    assert sizing.enough == UNLIMITED
