"""BBR keeps its rate through random losses, shares, holds queues short, and finds its rate again after changes."""

import math
from dataclasses import replace
from random import Random

import pytest
import udp_report
from udp_flow import Flow, join
from udp_network import Gilbert, Link, Network

from overlay.protocol.udp.bbr import Bbr
from overlay.protocol.udp.bbr_phases import Phase
from overlay.protocol.udp.congestion import Acknowledged, Congestion
from overlay.protocol.udp.cubic import Cubic

RATE = 6.25e6
"""50 Mbit/s."""
RTT = 0.1
PRODUCT = int(RATE * RTT)
SLOW = 1.25e6
"""10 Mbit/s, where many minutes are to be simulated."""


def path(*, rate: float = RATE, rtt: float = RTT, queue: float = 1.0, loss: float = 0.0) -> tuple[Link, Link]:
    """Both directions; the queue in bandwidth-delay products."""
    return Link(rate=rate, delay=rtt / 2, queue=max(20_000, int(queue * rate * rtt)), loss=loss), Link(delay=rtt / 2)


def alone(
    seconds: float, there: Link, back: Link, *, size: int = 1400, lag: float = 0.0, offered: float = math.inf
) -> Flow:
    """One flow on a path of its own."""
    network = Network()
    flow = join(network, Bbr(size, network.random.random), there, back, datagram_size=size, lag=lag, offered=offered)
    network.run(seconds)
    return flow


def report(shares: list[float], names: list[str], rate: float, queue: float, more: str = "") -> None:
    """A line for the end of the run."""
    parts = " : ".join(f"{name} {share:.0%}" for name, share in zip(names, shares, strict=True))
    udp_report.shares.append(f"{rate / 125_000:.0f} Mbit/s, RTT 100 ms, queue of {queue:g} BDP{more}: {parts}")


@pytest.mark.parametrize(("loss", "least"), [(0.0, 0.95), (0.01, 0.9), (0.03, 0.85), (0.1, 0.7), (0.3, 0.4)])
def test_random_losses_cost_little_more_than_what_is_lost(loss: float, least: float) -> None:
    flow = alone(9.0, *path(loss=loss))
    assert flow.receiver.goodput(3.0, 9.0) >= least * RATE


def test_losses_in_bursts_are_borne() -> None:
    there, back = path()
    there.gilbert = Gilbert(enter=0.002, leave=0.1)
    assert alone(10.0, there, back).receiver.goodput(3.0, 10.0) >= 0.8 * RATE


def test_lost_acknowledgements_cost_nothing() -> None:
    there, back = path()
    back.loss = 0.1
    assert alone(9.0, there, back).receiver.goodput(3.0, 9.0) >= 0.9 * RATE


@pytest.mark.parametrize("queue", [0.05, 0.5, 10.0])
def test_one_flow_leaves_no_standing_queue_whatever_fits(queue: float) -> None:
    flow = alone(12.0, *path(queue=queue))
    assert flow.receiver.goodput(3.0, 12.0) >= 0.95 * RATE
    assert flow.rtt(3.0, 12.0) <= 1.25 * RTT
    assert flow.sender.lost_bytes <= 0.05 * flow.sender.sent_bytes


@pytest.mark.parametrize(
    ("queue", "rate", "start", "end"), [(0.5, SLOW, 50.0, 80.0), (1.0, RATE, 12.0, 30.0), (8.0, SLOW, 20.0, 50.0)]
)
def test_two_flows_share_and_leave_a_short_queue(queue: float, rate: float, start: float, end: float) -> None:
    """A short queue on a slow path takes them longest: few losses say anything there."""
    network = Network()
    there, back = path(queue=queue, rate=rate)
    flows = [join(network, Bbr(1400, network.random.random), there, back, start=late) for late in (0.0, 3.0)]
    network.run(end)
    shares = [flow.receiver.goodput(start, end) / rate for flow in flows]
    report(shares, ["bbr", "bbr"], rate, queue)
    assert min(shares) >= 0.4 * sum(shares)
    assert sum(shares) >= 0.9
    assert flows[0].rtt(start, end) <= 2.0 * RTT


@pytest.mark.parametrize("queue", [1.0, 2.0])
@pytest.mark.parametrize("first", ["bbr", "cubic"])
def test_bbr_and_cubic_leave_each_other_a_quarter(queue: float, first: str) -> None:
    network = Network()
    there, back = path(rate=SLOW, queue=queue)
    controllers: list[Congestion] = [Bbr(1400, network.random.random), Cubic(1400)]
    starts = (0.0, 5.0) if first == "bbr" else (5.0, 0.0)
    flows = [
        join(network, controller, there, back, start=start)
        for controller, start in zip(controllers, starts, strict=True)
    ]
    network.run(60.0)
    shares = [flow.receiver.goodput(20.0, 60.0) / SLOW for flow in flows]
    report(shares, ["bbr", "cubic"], SLOW, queue, f", {first} first")
    assert min(shares) >= 0.25
    assert sum(shares) >= 0.9


def test_blackout_of_thirty_seconds_is_forgotten_in_a_few_round_trips() -> None:
    network = Network()
    there, back = path()
    flow = join(network, Bbr(1400, network.random.random), there, back)
    network.blackout(3.0, 30.0, there, back)
    network.run(40.0)
    goodput = flow.receiver.goodput
    assert goodput(35.5, 36.5) >= 0.85 * RATE, "a probe each 2 s finds the path, ten round trips find the rate"
    assert goodput(36.5, 40.0) >= 0.9 * RATE


@pytest.mark.parametrize("queue", [0.5, 1.0])
def test_rate_that_falls_to_a_tenth_and_comes_back_is_followed(queue: float) -> None:
    network = Network()
    there, back = path(queue=queue)
    flow = join(network, Bbr(1400, network.random.random), there, back)
    network.change(3.0, there, rate=RATE / 10)
    network.change(20.0, there, rate=RATE)
    network.run(28.0)
    goodput = flow.receiver.goodput
    assert goodput(4.0, 20.0) >= 0.9 * RATE / 10
    assert flow.rtt(15.0, 20.0) <= 2.5 * RTT
    assert goodput(24.0, 28.0) >= 0.9 * RATE


@pytest.mark.parametrize(
    ("rate", "rtt", "size", "seconds"),
    [
        (8e3, 0.1, 300, 60.0),
        (8e3, 5.0, 300, 300.0),
        (8e3, 0.0005, 1400, 60.0),
        (1e6, 0.02, 300, 5.0),
        (6.25e6, 0.1, 65_000, 15.0),
        (1.25e5, 5.0, 1400, 200.0),
        (1.25e9, 5e-5, 65_000, 0.1),
        (1.25e9, 5e-5, 1400, 0.02),
        (1.25e9, 0.1, 65_000, 3.0),
    ],
)
def test_every_rate_every_distance_and_every_size_works(rate: float, rtt: float, size: int, seconds: float) -> None:
    there, back = path(rate=rate, rtt=rtt)
    there.queue = max(there.queue, 20 * size)
    flow = alone(seconds, there, back, size=size)
    assert flow.receiver.goodput(seconds / 2, seconds) >= 0.85 * rate


@pytest.mark.parametrize("lag", [0.0003, 0.001, 0.005])
def test_loopback_with_busy_event_loops_keeps_its_rate(lag: float) -> None:
    """The bandwidth-delay product is 10 kB, a turn of the loop reads 60 kB to 1 MB: `Aggregation` makes up for it."""
    there, back = path(rate=2e8, rtt=5e-5)
    there.queue = 4 << 20
    flow = alone(0.5, there, back, lag=lag)
    assert flow.receiver.goodput(0.25, 0.5) >= 0.9 * 2e8


def test_application_limited_flow_does_not_inflate_the_window() -> None:
    there, back = path()
    flow = alone(30.0, there, back, offered=RATE / 20)
    assert flow.receiver.goodput(5.0, 30.0) == pytest.approx(RATE / 20, rel=0.05)
    assert flow.sender.congestion.window <= PRODUCT / 4


def test_bandwidth_learnt_before_a_quiet_time_is_kept() -> None:
    network = Network()
    there, back = path()
    bbr = Bbr(1400, network.random.random)
    flow = join(network, bbr, there, back)
    network.run(2.0)
    flow.sender.offered = RATE / 50
    network.run(25.0)
    assert bbr.bandwidth.estimate >= 0.8 * RATE


def sample(
    now: float, *, acked: int = 0, lost: int = 0, rtt: float | None = RTT, rate: float | None = None
) -> Acknowledged:
    """One acknowledgement, a round of its own."""
    return Acknowledged(now, acked, lost, 0, acked + lost, 10**6, rtt, RTT, RTT, rate, False, True, None)


def test_nothing_odd_in_a_sample_makes_a_window_or_a_rate_of_nothing() -> None:
    random = Random(1)
    for seed in range(50):
        bbr = Bbr(random.choice([300, 1400, 65_000]), Random(seed).random)
        now = 0.0
        for _ in range(300):
            now += random.choice([0.0, 1e-6, 0.01, 1.0, 100.0])
            bbr.sent(now, 1400, random.choice([1400, 10**6]))
            bbr.acknowledged(
                sample(
                    now,
                    acked=random.choice([0, 1, 1400, 10**9]),
                    lost=random.choice([0, 0, 1400, 10**7]),
                    rtt=random.choice([None, 0.0, 1e-6, 0.1, 10.0]),
                    rate=random.choice([None, 1e-3, 1e3, 1e6, 1e12]),
                )
            )
            if random.random() < 0.02:
                bbr.persistent_congestion(now)
            if random.random() < 0.02:
                bbr.spurious_loss(now, random.choice([-math.inf, now]))
            assert 2 * bbr._datagram <= bbr.window < 2**60
            assert bbr.pacing_rate > 0.0


def test_start_from_ten_small_packets_becomes_one_from_ten_large_ones() -> None:
    bbr = Bbr(300, Random(1).random)
    bbr.set_datagram_size(1400)
    assert bbr.window == 14_000
    for turn in range(30):
        bbr.acknowledged(sample(turn * RTT, acked=2000, rate=2e4))
    before = bbr.window
    bbr.set_datagram_size(1472)
    assert bbr.window == before < 14_000


def test_queue_of_others_does_not_keep_it_at_half_the_rate() -> None:
    """Half the bandwidth fills a BDP where others keep a queue of two: DRAIN would wait for less until they stop."""
    bbr = Bbr(1400, Random(1).random)
    now, phases = 0.0, []
    while bbr.phase is not Phase.DRAIN:
        now += RTT
        bbr.acknowledged(sample(now, acked=100_000, rate=RATE))
    for _ in range(10):
        now += RTT
        bbr.acknowledged(replace(sample(now, acked=100_000, rate=RATE / 2), in_flight=2 * PRODUCT))
        phases.append(bbr.phase)
    assert phases.count(Phase.DRAIN) <= 4


def test_bounds_are_taken_back_only_if_nothing_was_lost_since() -> None:
    bbr, now = Bbr(1400, Random(1).random), 0.0
    while bbr.phase is not Phase.CRUISE:
        now += RTT
        bbr.acknowledged(sample(now, acked=100_000, rate=RATE))
    bbr.acknowledged(sample(now + RTT, acked=100_000, lost=50_000, rate=RATE / 2))
    assert bbr.bandwidth.estimate < RATE
    bbr.spurious_loss(now + 2 * RTT, now + RTT)
    assert bbr.bandwidth.estimate < RATE
    bbr.spurious_loss(now + 2 * RTT, now)
    assert bbr.bandwidth.estimate == RATE


def test_persistent_congestion_sends_the_least_until_something_comes_back() -> None:
    bbr = Bbr(1400, Random(1).random)
    for turn in range(30):
        bbr.acknowledged(sample(turn * RTT, acked=100_000, rate=RATE))
    before = bbr.window
    bbr.persistent_congestion(4.0)
    assert bbr.window == 4 * 1400
    bbr.acknowledged(sample(5.0, acked=1400))
    assert bbr.window >= 0.8 * before


def test_new_path_begins_anew() -> None:
    bbr = Bbr(1400, Random(1).random)
    for turn in range(30):
        bbr.acknowledged(sample(turn * RTT, acked=100_000, rate=RATE))
    assert bbr.phase is not Phase.STARTUP
    bbr.reset(10.0)
    assert (bbr.window, bbr.pacing_rate, bbr.phase) == (14_000, math.inf, Phase.STARTUP)
