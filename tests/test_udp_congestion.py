"""The delivery rate is measured as the draft says, and the initial window is that of RFC 9002."""

import pytest

from overlay.protocol.udp.congestion import DeliveryRate, Snapshot, initial_window


@pytest.mark.parametrize(("size", "window"), [(300, 3000), (1400, 14_000), (9000, 18_000), (65_000, 130_000)])
def test_initial_window_is_that_of_rfc_9002(size: int, window: int) -> None:
    assert initial_window(size) == window


def test_rate_is_what_was_delivered_in_the_longer_of_both_intervals() -> None:
    """Ten bursts leave within 0.1 s; their acknowledgements come in one lump and cannot pretend a higher rate."""
    rate = DeliveryRate()
    sent = [(0.01 * n, rate.snapshot(0.01 * n, n * 1000)) for n in range(10)]
    for at, snapshot in sent:
        rate.acknowledged(1.0, snapshot, at, 1000)
    sample = rate.sample(0.05)
    assert sample.rate == pytest.approx(10_000 / 1.0)
    later = [(1.0 + 0.01 * n, rate.snapshot(1.0 + 0.01 * n, n * 1000)) for n in range(10)]
    for n, (at, snapshot) in enumerate(later):
        rate.acknowledged(1.1 + 0.02 * n, snapshot, at, 1000)
    assert rate.sample(0.05).rate == pytest.approx(10_000 / 0.28)
    assert rate.delivered == 20_000


def test_steady_flow_measures_its_rate() -> None:
    """1000 bytes each millisecond, acknowledged 50 ms later."""
    rate, rates = DeliveryRate(), []
    snapshots: dict[int, Snapshot] = {}
    for tick in range(500):
        now = tick / 1000
        if tick >= 50:
            rate.acknowledged(now, snapshots.pop(tick - 50), (tick - 50) / 1000, 1000)
            rates.append(rate.sample(0.049).rate)
        snapshots[tick] = rate.snapshot(now, 1000 * len(snapshots))
    assert rates[60:] == pytest.approx([1e6] * len(rates[60:]))


def test_interval_below_the_minimum_round_trip_gives_no_rate() -> None:
    rate = DeliveryRate()
    snapshot = rate.snapshot(0.0, 0)
    rate.acknowledged(0.01, snapshot, 0.0, 1000)
    assert rate.sample(0.05).rate is None
    assert rate.sample(0.05).rate is None, "nothing was acknowledged since"


def test_acknowledgement_at_the_instant_of_sending_divides_by_no_zero() -> None:
    rate = DeliveryRate()
    rate.acknowledged(5.0, rate.snapshot(5.0, 0), 5.0, 1000)
    assert rate.sample(0.0).rate is None


def test_rounds_begin_when_something_of_the_present_one_is_acknowledged() -> None:
    rate = DeliveryRate()
    snapshots = [rate.snapshot(0.0, 0), rate.snapshot(0.0, 1000)]
    starts = []
    for turn in range(1, 6):
        following = []
        for number, snapshot in enumerate(snapshots):
            now = turn * 0.1 + number * 0.01
            rate.acknowledged(now, snapshot, now - 0.1, 1000)
            starts.append(rate.sample(0.1).round_start)
            following.append(rate.snapshot(now, 1000))
        snapshots = following
    assert starts == [True, False] * 5


def test_samples_are_marked_until_what_the_application_limited_has_been_acknowledged() -> None:
    rate = DeliveryRate()
    first = rate.snapshot(0.0, 0)
    rate.application_limited(1000)
    second = rate.snapshot(0.05, 1000)
    rate.acknowledged(0.1, first, 0.0, 1000)
    assert not rate.sample(0.1).app_limited
    rate.acknowledged(0.15, second, 0.05, 1000)
    assert rate.sample(0.1).app_limited
    third = rate.snapshot(0.2, 0)
    rate.acknowledged(0.3, third, 0.2, 1000)
    assert not rate.sample(0.1).app_limited


def test_newest_burst_of_an_acknowledgement_makes_its_sample() -> None:
    """In whatever order the bursts are handed over."""
    results = []
    for order in ((0, 1, 2), (2, 1, 0)):
        rate = DeliveryRate()
        snapshots = [rate.snapshot(n / 10, n * 1000) for n in range(3)]
        for n in order:
            rate.acknowledged(1.0, snapshots[n], n / 10, 1000)
        results.append(rate.sample(0.1))
    assert results[0] == results[1]
