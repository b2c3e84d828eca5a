"""When to try again."""

import random
from collections import Counter

import pytest

from overlay.protocol.backoff import Backoff, DialBucket, OutageWatch


@pytest.mark.parametrize("draw", [1.0, 0.5, 0.25, 0.0])
def test_delays_double_up_to_the_cap_and_begin_anew_after_a_reset(draw: float) -> None:
    """1, 2, 4, 4 ... of which all is drawn: full jitter."""
    backoff = Backoff(1.0, 4.0, random=lambda: draw)
    assert [backoff.next_delay() for _ in range(4)] == [draw * bound for bound in (1, 2, 4, 4)]
    backoff.reset()
    assert backoff.next_delay() == draw


def test_the_delays_of_many_are_spread_evenly_from_nothing_to_the_bound() -> None:
    """Each tenth of it has its tenth of 10,000, within five standard deviations."""
    lot = random.Random(8)
    delays = [Backoff(8.0, 8.0, random=lot.random).next_delay() for _ in range(10_000)]
    tenths = Counter(int(delay / 0.8) for delay in delays)
    assert set(tenths) == set(range(10))
    assert all(abs(count - 1000) < 150 for count in tenths.values())


def test_the_bucket_lets_a_burst_go_and_then_one_at_a_time() -> None:
    """Two at once, then one each half second."""
    bucket = DialBucket(rate=2.0, burst=2.0)
    assert [bucket.take(100.0) for _ in range(4)] == [0, 0, 0.5, 1.0]
    assert bucket.take(200.0) == 0


def test_a_quarter_of_all_sessions_within_a_second_is_our_own_outage() -> None:
    """Four of sixteen are, four of seventeen are not, and four in four seconds neither."""
    watch = OutageWatch()
    assert [watch.suspected(10 + n / 10, 16) for n in range(4)] == [False, False, False, True]
    watch = OutageWatch()
    assert not any(watch.suspected(10 + n / 10, 17) for n in range(4))
    watch = OutageWatch()
    assert not any(watch.suspected(10 + n, 8) for n in range(4))


def test_few_suspects_say_nothing() -> None:
    """With two peers, one silent peer is not an outage."""
    watch = OutageWatch()
    assert not any(watch.suspected(1.0, 2) for _ in range(3))
