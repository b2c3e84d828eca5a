"""The pacer lets whole bursts go at high rates, single packets at low ones, and loses no rate to late timers."""

import itertools
import math
from random import Random

import pytest

from overlay.protocol.udp.pacing import MAX_QUANTUM, Pacer, quantum


def run(rate: float, size: int, seconds: float, *, late: float = 0.0, start: float = 0.0) -> list[tuple[float, int]]:
    """When how much leaves if the sender has always more, and wakes up so late."""
    pacer, now, left = Pacer(size), start, []
    pacer.set_rate(now, rate)
    while now < start + seconds:
        allowed = pacer.burst(now)
        if allowed >= size:
            burst = allowed // size * size
            pacer.sent(now, burst)
            left.append((now, burst))
        else:
            due = pacer.next_send_time(now)
            assert due is not None
            now = max(due, now) + late
    return left


def test_before_the_rate_is_known_only_the_window_limits() -> None:
    pacer = Pacer(1400)
    for _ in range(100):
        assert pacer.burst(1.0) == MAX_QUANTUM
        assert pacer.next_send_time(1.0) is None
        pacer.sent(1.0, MAX_QUANTUM)


@pytest.mark.parametrize(
    ("rate", "size", "expected"),
    [(8e3, 300, 300), (1e6, 1400, 1400), (1e7, 1400, 10_000), (2e8, 1400, MAX_QUANTUM), (1.25e9, 65_000, MAX_QUANTUM)],
)
def test_quantum_is_a_millisecond_but_a_datagram_at_least_and_a_gso_send_at_most(
    rate: float, size: int, expected: int
) -> None:
    assert quantum(rate, size) == expected


@pytest.mark.parametrize("size", [300, 1400, 65_000])
@pytest.mark.parametrize("rate", [8e3, 6.25e6, 2e8, 1.25e9])
@pytest.mark.parametrize("start", [0.0, 1e7])
def test_rate_is_kept_whatever_the_size(rate: float, size: int, start: float) -> None:
    seconds = max(0.05, 100 * max(size, quantum(rate, size)) / rate)
    sent = sum(burst for _, burst in run(rate, size, seconds, start=start))
    assert sent == pytest.approx(rate * seconds, rel=0.1)


@pytest.mark.parametrize("late", [0.0015, 0.005, 0.02])
@pytest.mark.parametrize("rate", [1e6, 2e8])
def test_late_wake_ups_cost_no_rate(rate: float, late: float) -> None:
    sent = sum(burst for _, burst in run(rate, 1400, 2.0, late=late))
    assert sent == pytest.approx(rate * 2.0, rel=0.03)


def test_sleep_of_a_second_is_not_made_up_for() -> None:
    pacer = Pacer(1400)
    pacer.set_rate(0.0, 1e6)
    pacer.sent(0.0, pacer.burst(0.0))
    assert pacer.next_send_time(0.0) is not None
    assert pacer.burst(1.0) <= 1e6 * 0.026 + 1400


def test_low_rate_spreads_single_datagrams() -> None:
    left = run(8e3, 300, 10.0)
    assert left[0] == (0.0, 600), "an idle sender may send two at once"
    assert {burst for _, burst in left[1:]} == {300}
    gaps = [two - one for (one, _), (two, _) in itertools.pairwise(left[1:])]
    assert gaps == pytest.approx([300 / 8e3] * len(gaps), rel=0.05)


def test_high_rate_sends_full_bursts_with_few_wake_ups() -> None:
    left = run(2e8, 1400, 1.0)
    assert min(burst for _, burst in left) == MAX_QUANTUM // 1400 * 1400
    assert len(left) <= 1.05 * 2e8 / MAX_QUANTUM


def test_idle_sender_finds_a_bounded_burst() -> None:
    pacer = Pacer(1400)
    pacer.set_rate(0.0, 1e7)
    pacer.sent(0.0, pacer.burst(0.0))
    assert pacer.burst(100.0) == 30_000
    pacer.set_rate(100.0, 1e5)
    assert pacer.burst(200.0) <= 30_000


def test_probe_beyond_the_allowance_is_a_bounded_debt() -> None:
    pacer = Pacer(1400)
    pacer.set_rate(0.0, 1e6)
    for _ in range(1000):
        pacer.sent(0.0, 1400)
    due = pacer.next_send_time(0.0)
    assert due is not None
    assert 0.001 < due < 0.01


def test_named_time_is_enough() -> None:
    """Whatever rate and clock: who wakes up at the time that was named may send."""
    random = Random(1)
    for _ in range(5000):
        size = random.choice([300, 1400, 9000, 65_507])
        now = random.choice([0.0, 1e3, 1e7]) + random.random()
        pacer = Pacer(size)
        pacer.set_rate(now, math.exp(random.uniform(math.log(1e3), math.log(2e9))))
        while (due := pacer.next_send_time(now)) is None:
            pacer.sent(now, pacer.burst(now))
        assert pacer.burst(due), (size, now, due, pacer.rate)


def test_larger_datagram_makes_a_larger_quantum() -> None:
    pacer = Pacer(300)
    pacer.set_rate(0.0, 1e5)
    pacer.burst(0.0)
    pacer.set_datagram_size(9000)
    assert pacer.burst(10.0) == 18_000
