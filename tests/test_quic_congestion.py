"""The congestion window grows while it is used, and only then; and it feeds no queue that only stands."""

import math

import pytest
from aioquic.quic.congestion.reno import RenoCongestionControl
from reno_flow import SIZE, Sender, join, packet_of
from udp_network import Link, Network

from overlay.transports.quic_congestion import OverlayReno

KILOBIT = 125.0
MEGABIT = 125_000.0


def _rounds(packets: int, rounds: int) -> int:
    control = OverlayReno(max_datagram_size=1200)
    for number in range(1, rounds + 1):
        flight = [packet_of(number, 1200, number) for _ in range(packets)]
        for packet in flight:
            control.on_packet_sent(packet=packet)
        control.on_rtt_measurement(now=number + 0.5, rtt=0.5)
        for packet in flight:
            control.on_packet_acked(now=number + 0.5, packet=packet)
    return control.congestion_window


def test_the_window_grows_while_it_is_used() -> None:
    """Slow start, with an acknowledgement for each round."""
    assert _rounds(10, 1) == 2 * 12_000


def test_the_window_does_not_grow_while_it_is_idle() -> None:
    """RFC 9002 section 7.8: a trickle proves nothing about the path."""
    assert _rounds(1, 1000) <= 12_000 + 2 * 1200
    assert _rounds(20, 1000) < 60 * 1200


def test_only_an_acknowledgement_is_one() -> None:
    control = OverlayReno(max_datagram_size=1200)
    first, probe = packet_of(0, 1200, 1.0), packet_of(1, 1200, 2.0)
    control.on_packet_sent(packet=first)
    control.on_packets_expired(packets=[first])
    control.on_packet_sent(packet=probe)
    assert control.last_acknowledged == 0.0
    control.on_packet_acked(now=2.1, packet=probe)
    assert control.last_acknowledged == 2.1


def _alone(control: RenoCongestionControl, rate: float, rtt: float, seconds: float, queue: float = math.inf) -> Sender:
    network = Network()
    flow = join(network, control, Link(rate=rate, delay=rtt / 2, queue=queue), Link(delay=rtt / 2))
    network.run(seconds)
    return flow


@pytest.mark.parametrize(
    ("rate", "rtt", "seconds"),
    [
        (80 * KILOBIT, 0.02, 60.0),
        (MEGABIT, 0.02, 30.0),
        (10 * MEGABIT, 0.05, 30.0),
        (100 * MEGABIT, 0.1, 20.0),
        (MEGABIT, 0.6, 60.0),
    ],
)
def test_a_queue_without_end_is_not_filled(rate: float, rtt: float, seconds: float) -> None:
    """Where Reno alone would grow for ever; and the bottleneck is never idle for it."""
    flow = _alone(OverlayReno(max_datagram_size=SIZE), rate, rtt, seconds)
    start = seconds / 2
    assert flow.goodput(start, seconds) >= 0.97 * rate
    # Four packets are what the window never goes below, and Reno adds one at a time.
    assert flow.rtt(start, seconds) <= 1.25 * rtt + 0.008 + 8 * SIZE / rate
    reno = _alone(RenoCongestionControl(max_datagram_size=SIZE), rate, rtt, seconds)
    assert flow.rtt(start, seconds) < reno.rtt(start, seconds)


@pytest.mark.parametrize("jitter", [0.02, 0.1])
def test_jitter_costs_no_goodput(jitter: float) -> None:
    """Each 20 ms another delay, as on radio: in no round trip are all of its packets slow."""
    network = Network()
    there = Link(rate=10 * MEGABIT, delay=0.02)
    # What only comes late is no loss here: of that Reno makes more than of any delay.
    control = OverlayReno(max_datagram_size=SIZE)
    flow = join(network, control, there, Link(delay=0.02), threshold=1_000_000)
    for turn in range(2000):
        network.change(turn * 0.02, there, delay=0.02 + jitter * network.random.random())
    network.run(40.0)
    assert flow.goodput(20.0, 40.0) >= 0.9 * 10 * MEGABIT


def test_a_path_that_has_become_longer_is_filled_again() -> None:
    """No window that is cut makes its delay less."""
    network = Network()
    there = Link(rate=10 * MEGABIT, delay=0.01)
    flow = join(network, OverlayReno(max_datagram_size=SIZE), there, Link(delay=0.01))
    network.change(10.0, there, delay=0.09)
    network.run(60.0)
    assert flow.goodput(40.0, 60.0) >= 0.95 * 10 * MEGABIT
    assert flow.rtt(40.0, 60.0) <= 1.5 * 0.1


@pytest.mark.parametrize("queue", [0.5, 2.0, 8.0])
def test_beside_reno_it_does_not_starve(queue: float) -> None:
    """The other one fills the queue whatever we do."""
    rate, rtt = 10 * MEGABIT, 0.04
    network = Network()
    there, back = Link(rate=rate, delay=rtt / 2, queue=queue * rate * rtt), Link(delay=rtt / 2)
    ours = join(network, OverlayReno(max_datagram_size=SIZE), there, back)
    join(network, RenoCongestionControl(max_datagram_size=SIZE), there, back, start=5.0)
    network.run(120.0)
    assert ours.goodput(40.0, 120.0) >= 0.15 * rate


def test_two_of_us_share() -> None:
    rate, rtt = 10 * MEGABIT, 0.04
    network = Network()
    there, back = Link(rate=rate, delay=rtt / 2, queue=4 * rate * rtt), Link(delay=rtt / 2)
    flows = [join(network, OverlayReno(max_datagram_size=SIZE), there, back, start=start) for start in (0.0, 7.0)]
    network.run(120.0)
    shares = [flow.goodput(40.0, 120.0) / rate for flow in flows]
    assert sum(shares) >= 0.95
    assert min(shares) >= 0.2


def _delays(*rounds: float) -> int:
    """The window after successive round trips that use all of it, each as slow as said."""
    control, now = OverlayReno(max_datagram_size=1200), 1.0
    for rtt in rounds:
        flight = [packet_of(number, 1200, now) for number in range(control.congestion_window // 1200)]
        for packet in flight:
            control.on_packet_sent(packet=packet)
        now += rtt
        for packet in flight:
            control.on_packet_acked(now=now, packet=packet)
            control.on_rtt_measurement(now=now, rtt=rtt)
    return control.congestion_window


def test_a_process_that_stood_still_for_a_moment_cuts_nothing() -> None:
    """All of one round trip comes late, and nothing of the next."""
    assert _delays(0.02, 0.02, 0.3, 0.02, 0.02, 0.02) >= _delays(0.02)
    assert _delays(0.02, 0.02, 0.3, 0.3, 0.3) < _delays(0.02)
