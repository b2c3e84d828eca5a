"""CUBIC does what RFC 9438 says, alone and on the simulated network."""

import math
from dataclasses import replace

import pytest
from udp_flow import join
from udp_network import Link, Network

from overlay.protocol.udp.congestion import MAXIMUM_WINDOW, Acknowledged
from overlay.protocol.udp.cubic import BETA, Cubic

SIZE = 1000
RTT = 0.1


def sample(
    now: float, cubic: Cubic, *, acked: int = 0, lost: int = 0, limited: bool = False, **more: float
) -> Acknowledged:
    """One acknowledgement on a path of 100 ms; a full window was in flight if not limited."""
    if not limited:
        cubic.sent(now - RTT, SIZE, cubic.window)
    return Acknowledged(
        now=now,
        acked=acked,
        lost=lost,
        in_flight=0,
        prior_in_flight=int(more.get("in_flight", 1000 if limited else cubic.window)),
        delivered=0,
        rtt=more.get("rtt", RTT),
        smoothed_rtt=RTT,
        minimum_rtt=RTT,
        rate=None,
        rate_app_limited=limited,
        round_start=bool(more.get("round_start", True)),
        largest_lost_sent_at=now - RTT if lost else None,
    )


def reduced(window: int) -> Cubic:
    """One that has just had its first loss, at this window, at 10 s."""
    cubic = Cubic(SIZE)
    while cubic.window < window:
        cubic.acknowledged(sample(9.0, cubic, acked=min(cubic.window, window - cubic.window), round_start=False))
    cubic.acknowledged(sample(10.0, cubic, lost=SIZE))
    return cubic


def test_slow_start_doubles_each_round_trip() -> None:
    cubic = Cubic(SIZE)
    for turn in range(5):
        cubic.acknowledged(sample(turn * RTT, cubic, acked=cubic.window))
    assert cubic.window == 320_000
    assert cubic.pacing_rate == pytest.approx(2.0 * 320_000 / RTT)


def test_slow_start_ends_when_the_round_trip_time_rises() -> None:
    """HyStart++: conservative first, over after five more rounds, and no loss was needed."""
    cubic, now = Cubic(SIZE), 0.0
    for turn in range(14):
        window, rtt = cubic.window, RTT if turn < 3 else RTT + 0.02
        for part in range(10):
            now += RTT / 10
            cubic.acknowledged(sample(now, cubic, acked=window // 10, rtt=rtt, round_start=part == 0))
    assert 80_000 < cubic.window < 600_000
    assert cubic.pacing_rate == pytest.approx(1.25 * cubic.window / RTT, rel=0.01)


def test_losses_of_one_round_trip_reduce_the_window_once() -> None:
    cubic = reduced(100_000)
    assert cubic.window == 70_000
    for lost in (1, 2, 3):
        cubic.acknowledged(sample(10.0 + lost * 0.01, cubic, lost=SIZE))
    assert cubic.window == 70_000
    cubic.acknowledged(sample(10.2, cubic, lost=SIZE))
    assert cubic.window == 49_000


def test_window_returns_after_k_seconds_and_then_goes_beyond() -> None:
    """K = cbrt(W_max * (1 - beta) / C): for 1000 segments 9.09 s."""
    cubic, now = reduced(1_000_000), 10.1
    course = {}
    while now < 24.0:
        now += RTT
        cubic.acknowledged(sample(now, cubic, acked=cubic.window))
        course[round(now - 10.2, 1)] = cubic.window
    k = math.cbrt(1000 * (1 - BETA) / 0.4)
    assert course[round(k, 1)] == pytest.approx(1_000_000, rel=0.01)
    assert course[2.0] < course[4.0] < course[8.0]
    assert course[12.0] > 1_005_000


def test_short_path_grows_no_slower_than_reno() -> None:
    cubic, now = reduced(20_000), 10.1
    for _ in range(12):
        now += RTT
        cubic.acknowledged(sample(now, cubic, acked=cubic.window))
    assert cubic.window >= 14_000 + 0.5 * 12 * SIZE


def test_fast_convergence_aims_lower_after_a_second_loss_below_the_first() -> None:
    first, second = reduced(1_000_000), reduced(1_000_000)
    second.acknowledged(sample(10.5, second, lost=SIZE))
    assert second._memory.before_loss == pytest.approx(700_000 * (1 + BETA) / 2)
    assert first._memory.before_loss == 1_000_000


def test_application_limited_flow_does_not_grow() -> None:
    cubic = Cubic(SIZE)
    for turn in range(100):
        cubic.acknowledged(sample(turn * RTT, cubic, acked=1000, limited=True))
    assert cubic.window == 10_000
    cubic = reduced(100_000)
    for turn in range(1000):
        cubic.acknowledged(sample(11.0 + turn * RTT, cubic, acked=1000, limited=True))
    assert cubic.window == 70_000
    cubic.acknowledged(sample(112.0, cubic, acked=70_000))
    assert cubic.window < 75_000, "the time in which it was limited does not count"


def test_window_that_the_application_does_not_fill_is_not_raised() -> None:
    """Whatever the samples of the rate say: a receiver's credit limits as well, and none of them knows of it."""
    start = Cubic(SIZE)
    late = reduced(100_000)
    for turn in range(200):
        for cubic in (start, late):
            cubic.sent(12.0 + turn * RTT, 3000, 3000)
            one = sample(12.0 + (turn + 1) * RTT, cubic, acked=3000, limited=True, in_flight=3000)
            cubic.acknowledged(replace(one, rate_app_limited=False))
    assert start.window == 10_000
    assert late.window == 70_000


def test_window_has_a_limit() -> None:
    cubic = Cubic(SIZE)
    for turn in range(60):
        cubic.acknowledged(sample(turn * RTT, cubic, acked=cubic.window))
    assert cubic.window == MAXIMUM_WINDOW
    cubic.acknowledged(sample(7.0, cubic, lost=SIZE))
    for turn in range(600):
        cubic.acknowledged(sample(8.0 + turn * RTT, cubic, acked=cubic.window))
    assert cubic.window == MAXIMUM_WINDOW


def test_start_from_ten_small_packets_becomes_one_from_ten_large_ones() -> None:
    """RFC 9002 section 7.2; but only as long as nothing was lost."""
    cubic = Cubic(300)
    cubic.set_datagram_size(1400)
    assert cubic.window == 14_000
    cubic.acknowledged(sample(1.0, cubic, acked=300))
    assert cubic.window == 14_300
    cubic.acknowledged(sample(2.0, cubic, lost=300))
    cubic.set_datagram_size(1472)
    assert cubic.window == int(14_300 * BETA)


def test_true_loss_among_late_ones_is_not_taken_back() -> None:
    cubic = reduced(100_000)
    cubic.spurious_loss(10.3, 10.05)
    assert cubic.window == 70_000


def test_spurious_loss_is_taken_back() -> None:
    cubic = reduced(100_000)
    cubic.spurious_loss(10.3, 9.9)
    assert cubic.window == 100_000
    cubic.spurious_loss(10.4, 9.9)
    assert cubic.window == 100_000


def test_persistent_congestion_begins_again_with_two_packets() -> None:
    cubic = reduced(100_000)
    cubic.persistent_congestion(11.0)
    assert cubic.window == 2 * SIZE
    for turn in range(6):
        cubic.acknowledged(sample(11.2 + turn * RTT, cubic, acked=cubic.window))
    assert cubic.window >= 70_000, "slow start until the threshold"


def test_window_never_falls_below_two_packets_of_any_size() -> None:
    cubic = Cubic(300)
    for turn in range(1, 50):
        cubic.acknowledged(sample(turn * 1.0, cubic, lost=300))
    assert cubic.window == 600
    cubic.set_datagram_size(9000)
    assert cubic.window == 18_000
    cubic.acknowledged(sample(100.0, cubic, lost=9000))
    assert cubic.window == 18_000


def test_new_path_begins_anew() -> None:
    cubic = reduced(500_000)
    cubic.reset(20.0)
    assert (cubic.window, cubic.pacing_rate) == (10_000, math.inf)


def test_cubic_fills_a_clean_path() -> None:
    network, link = Network(), Link(rate=6.25e6, delay=0.05, queue=625_000)
    flow = join(network, Cubic(1400), link, Link(delay=0.05))
    network.run(15.0)
    assert flow.receiver.goodput(5.0, 15.0) >= 0.95 * 6.25e6
    assert flow.sender.lost_bytes <= 0.02 * flow.sender.sent_bytes


def test_cubic_falls_below_fifteen_hundredths_at_one_per_cent_of_random_loss() -> None:
    network, link = Network(), Link(rate=6.25e6, delay=0.05, queue=625_000, loss=0.01)
    flow = join(network, Cubic(1400), link, Link(delay=0.05))
    network.run(30.0)
    assert flow.receiver.goodput(10.0, 30.0) < 0.15 * 6.25e6


def test_two_flows_share() -> None:
    network, link, back = Network(), Link(rate=1.25e6, delay=0.05, queue=125_000), Link(delay=0.05)
    flows = [join(network, Cubic(1400), link, back, start=start) for start in (0.0, 3.0)]
    network.run(100.0)
    shares = [flow.receiver.goodput(40.0, 100.0) / 1.25e6 for flow in flows]
    assert min(shares) >= 0.4 * sum(shares)
    assert sum(shares) >= 0.95


def test_blackout_and_change_of_rate_are_survived() -> None:
    network, link, back = Network(), Link(rate=6.25e6, delay=0.05, queue=312_500), Link(delay=0.05)
    flow = join(network, Cubic(1400), link, back)
    network.blackout(5.0, 30.0, link, back)
    network.change(45.0, link, rate=6.25e5)
    network.run(60.0)
    goodput = flow.receiver.goodput
    assert goodput(40.0, 45.0) >= 0.5 * 6.25e6
    assert goodput(50.0, 60.0) >= 0.95 * 6.25e5
