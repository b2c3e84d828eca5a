"""Each of BBR's estimators measures what it says, and forgets what it should."""

import math

import pytest

from overlay.protocol.udp.bbr_model import Aggregation, Bandwidth, Growth, Losses, MinimumRtt
from overlay.protocol.udp.congestion import Acknowledged


def acknowledged(*, acked: int = 0, lost: int = 0, rtt: float | None = None) -> Acknowledged:
    """As much of a sample as `Losses` looks at."""
    return Acknowledged(0.0, acked, lost, 0, 0, 0, rtt, 0.1, 0.1, None, False, False, None)


def test_bandwidth_is_the_highest_of_two_cycles() -> None:
    bandwidth = Bandwidth()
    bandwidth.sampled(100.0, app_limited=False)
    bandwidth.sampled(70.0, app_limited=False)
    bandwidth.next_cycle()
    bandwidth.sampled(80.0, app_limited=False)
    assert bandwidth.estimate == 100.0
    bandwidth.next_cycle()
    assert bandwidth.estimate == 80.0


def test_application_limited_samples_raise_the_bandwidth_and_never_lower_it() -> None:
    bandwidth = Bandwidth()
    bandwidth.sampled(100.0, app_limited=False)
    for _ in range(5):
        bandwidth.next_cycle()
        bandwidth.sampled(10.0, app_limited=True)
    assert bandwidth.estimate == 100.0
    bandwidth.sampled(120.0, app_limited=True)
    assert bandwidth.estimate == 120.0


def test_bottleneck_that_has_become_slower_is_believed_after_three_queued_rounds() -> None:
    bandwidth = Bandwidth()
    bandwidth.sampled(100.0, app_limited=False)
    bandwidth.next_round(queued=False)
    for rate in (10.0, 12.0):
        bandwidth.sampled(rate, app_limited=False)
        bandwidth.next_round(queued=True)
        assert bandwidth.estimate == 100.0
    bandwidth.sampled(11.0, app_limited=False)
    bandwidth.next_round(queued=True)
    assert bandwidth.estimate == 12.0


@pytest.mark.parametrize(("rate", "queued"), [(60.0, True), (10.0, False), (0.0, True)])
def test_bandwidth_does_not_collapse_without_a_queue_or_by_less_than_half_or_for_lack_of_samples(
    rate: float, queued: bool
) -> None:
    bandwidth = Bandwidth()
    bandwidth.sampled(100.0, app_limited=False)
    bandwidth.next_round(queued=False)
    for _ in range(10):
        bandwidth.sampled(rate, app_limited=False)
        bandwidth.next_round(queued=queued)
    assert bandwidth.estimate == 100.0


def test_short_term_bound_limits_the_estimate() -> None:
    bandwidth = Bandwidth()
    bandwidth.sampled(100.0, app_limited=False)
    bandwidth.short_term = 60.0
    assert (bandwidth.estimate, bandwidth.highest) == (60.0, 100.0)


def test_growth_counts_rounds_that_grew_and_rounds_in_succession_that_did_not() -> None:
    growth = Growth()
    for bandwidth in (100.0, 200.0, 210.0, 220.0):
        growth.judge(bandwidth, 1.25)
    assert (growth.grown, growth.level) == (2, 2)
    growth.judge(260.0, 1.25)
    assert (growth.grown, growth.level) == (3, 0)
    growth.restart(260.0)
    growth.judge(270.0, 1.25)
    assert (growth.grown, growth.level) == (0, 1)


def test_lowest_round_trip_time_is_believed_for_ten_seconds() -> None:
    rtt = MinimumRtt()
    rtt.sampled(0.0, 0.1)
    for tick in range(1, 100):
        rtt.sampled(tick / 10, 0.3)
    assert rtt.seconds == 0.1
    for tick in range(100, 120):
        rtt.sampled(tick / 10, 0.3)
    assert rtt.seconds == 0.3


def test_look_at_the_empty_queue_is_due_after_five_seconds() -> None:
    rtt = MinimumRtt()
    due = []
    for tick in range(60):
        rtt.sampled(tick / 10, 0.1 if tick == 0 else 0.2)
        due.append(rtt.due)
        rtt.due = False
    assert due.index(True) == 51
    assert sum(due) == 1


def test_look_is_not_due_while_the_path_is_as_quick_as_ever_or_was_idle() -> None:
    rtt = MinimumRtt()
    for tick in range(200):
        rtt.sampled(tick / 10, 0.1)
        assert not rtt.due
    rtt.postpone(60.0)
    rtt.sampled(60.0, 0.5)
    assert not rtt.due


def test_look_is_rare_on_a_path_of_five_seconds() -> None:
    rtt = MinimumRtt()
    for now in range(150):
        rtt.sampled(float(now), 5.0 + (now > 0))
        assert not rtt.due
    rtt.sampled(151.0, 6.0)
    assert rtt.due


def test_lumps_of_acknowledgements_are_measured_and_forgotten() -> None:
    """1 MB/s in lumps of 20 ms: 20,000 bytes come at once."""
    lumps = Aggregation()
    for lump in range(20):
        lumps.acknowledged(lump * 0.02, 20_000, 1e6, 1_000_000, round_start=lump % 5 == 0)
    assert 15_000 <= lumps.extra <= 20_000
    for tick in range(2000):
        lumps.acknowledged(0.5 + tick * 0.001, 1000, 1e6, 1_000_000, round_start=tick % 100 == 0)
    assert lumps.extra <= 2000


def test_lump_adds_no_more_than_a_tenth_of_a_second_or_a_window() -> None:
    lumps = Aggregation()
    lumps.acknowledged(0.0, 1 << 30, 1e6, 1 << 30, round_start=True)
    assert lumps.extra == 100_000
    lumps = Aggregation()
    lumps.acknowledged(0.0, 1 << 30, 1e6, 5000, round_start=True)
    assert lumps.extra == 5000


def test_lump_before_the_first_bandwidth_means_nothing() -> None:
    lumps = Aggregation()
    lumps.acknowledged(0.0, 1400, 0.0, 14_000, round_start=True)
    assert lumps.extra == 0


def judged(losses: Losses, lost: int, *, rtt: float = 0.1, gentle: bool = True) -> bool:
    """A round of 500 packets of 1000 bytes of which so many are lost."""
    losses.sampled(acknowledged(acked=(500 - lost) * 1000, lost=lost * 1000, rtt=rtt))
    losses.judge(0.1, 1000, gentle=gentle)
    return losses.too_high


def test_losses_above_two_per_cent_are_too_high_on_a_path_that_has_none_of_its_own() -> None:
    losses = Losses()
    assert not judged(losses, 10)
    assert judged(Losses(), 11)
    assert losses.own == pytest.approx(0.02 / 8)


def test_losses_that_the_path_always_has_are_its_own() -> None:
    losses = Losses()
    for _ in range(40):
        judged(losses, 25)
    assert losses.own == pytest.approx(0.05, rel=0.02)
    assert not judged(losses, 40)
    assert judged(losses, 60)


def test_losses_of_a_probe_or_of_a_queue_are_never_the_paths_own() -> None:
    losses = Losses()
    for _ in range(40):
        assert judged(losses, 25, gentle=False)
        assert judged(losses, 25, rtt=0.15)
        assert losses.queued
    assert losses.own == 0.0


def test_few_losses_of_a_small_window_mean_nothing() -> None:
    losses = Losses()
    losses.sampled(acknowledged(acked=5000, lost=5000, rtt=0.1))
    losses.judge(0.1, 1000, gentle=False)
    assert not losses.too_high


def test_round_need_not_end_when_it_has_lost_too_much_already() -> None:
    losses = Losses()
    losses.sampled(acknowledged(acked=20_000, lost=9000))
    assert not losses.excessive(500_000, 1000)
    losses.sampled(acknowledged(lost=9000))
    assert losses.excessive(500_000, 1000)


def test_round_without_anything_is_judged() -> None:
    losses = Losses()
    losses.judge(math.inf, 1000, gentle=True)
    assert not losses.too_high
    assert not losses.queued
