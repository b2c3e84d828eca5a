"""The simulated network does what its parameters say, and the same each time."""

import math
from collections.abc import Iterable, Sized

import pytest
from udp_network import STUCK, Gilbert, Link, Network


class Source:
    """Sends numbered datagrams at an even rate."""

    def __init__(self, number: int, *, size: int = 1000, every: float = 0.001) -> None:
        self.number = number
        self.size = size
        self.every = every
        self.sent = 0

    def receive(self, datagram: bytes, now: float) -> None:
        raise AssertionError(datagram)

    def handle_timeout(self, now: float) -> None:
        pass

    def datagrams_to_send(self, now: float) -> Iterable[Sized]:
        while self.sent < self.number and self.sent * self.every <= now:
            yield self.sent.to_bytes(4, "big").ljust(self.size, b".")
            self.sent += 1

    def next_timeout(self) -> float | None:
        return self.sent * self.every if self.sent < self.number else None


class Sink:
    """Notes what comes and when."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.times: list[float] = []

    def receive(self, datagram: bytes, now: float) -> None:
        self.numbers.append(int.from_bytes(datagram[:4], "big"))
        self.times.append(now)

    def handle_timeout(self, now: float) -> None:
        pass

    def datagrams_to_send(self, now: float) -> Iterable[Sized]:
        return ()

    def next_timeout(self) -> float | None:
        return None


def carry(link: Link, source: Source, *, seed: int = 1, lag: float = 0.0) -> Sink:
    """Everything that the source sends, through the link."""
    network, sink = Network(seed), Sink()
    network.connect(source, sink, link, Link(), lag=lag)
    network.run(until=1000.0)
    return sink


def test_datagram_needs_its_delay_and_its_time_at_the_rate() -> None:
    sink = carry(Link(rate=1e5, delay=0.25), Source(3, every=1.0))
    assert sink.times == pytest.approx([0.26, 1.26, 2.26])


def test_datagrams_leave_a_queue_at_the_rate_and_in_order() -> None:
    link = Link(rate=1e5, queue=5000)
    sink = carry(link, Source(20, every=0.0))
    assert sink.numbers == [0, 1, 2, 3, 4]
    assert sink.times == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05])
    assert (link.counters.overflowed, link.counters.highest_queue, link.queued) == (15, 5000, 0)


def test_one_datagram_always_fits_into_a_queue() -> None:
    assert carry(Link(rate=1e5, queue=1), Source(2, every=1.0)).numbers == [0, 1]


def test_flows_share_a_link() -> None:
    """Sources of 1 MB/s and one of 0.7 MB/s find 1 MB/s: each gets a part, and together no more than that."""
    network, shared, sinks = Network(), Link(rate=1e6, queue=20_000), (Sink(), Sink())
    for sink, every in zip(sinks, (0.001, 0.0014), strict=True):
        network.connect(Source(2000, every=every), sink, shared, Link())
    network.run(until=2.0)
    arrived = [len(sink.numbers) for sink in sinks]
    assert 1990 <= sum(arrived) <= 2000
    assert min(arrived) > 500


def test_path_may_have_several_links() -> None:
    network, sink = Network(), Sink()
    network.connect(Source(1), sink, [Link(delay=0.1), Link(delay=0.2), Link(rate=1e4)], Link())
    network.run(until=5.0)
    assert sink.times == pytest.approx([0.4])


def test_losses_are_as_many_as_asked_for_and_the_same_each_time() -> None:
    first = carry(Link(loss=0.1), Source(5000))
    assert 4350 <= len(first.numbers) <= 4650
    assert carry(Link(loss=0.1), Source(5000)).numbers == first.numbers
    assert carry(Link(loss=0.1), Source(5000), seed=2).numbers != first.numbers


def test_gilbert_loses_in_bursts() -> None:
    """2 % of the time in a state that lasts 20 packets: the same loss as by single packets, in far fewer places."""
    sink = carry(Link(gilbert=Gilbert(enter=0.001, leave=0.05)), Source(20_000))
    lost = 20_000 - len(sink.numbers)
    gaps = sum(1 for one, two in zip(sink.numbers, sink.numbers[1:], strict=False) if two != one + 1)
    assert 200 <= lost <= 700
    assert lost / gaps > 8


def test_reordering_is_bounded_and_loses_nothing() -> None:
    sink = carry(Link(reorder=0.05, reorder_depth=50), Source(5000))
    assert sorted(sink.numbers) == list(range(5000))
    highest, distance = -1, 0
    for number in sink.numbers:
        distance = max(distance, highest - number)
        highest = max(highest, number)
    assert 40 <= distance <= 53


def test_held_datagram_comes_even_if_nothing_follows() -> None:
    assert carry(Link(reorder=1.0, reorder_time=0.5), Source(1)).times == pytest.approx([0.5])


def test_duplicates_come_twice() -> None:
    link = Link(duplicate=0.2)
    sink = carry(link, Source(2000))
    assert len(sink.numbers) == 2000 + link.counters.duplicated
    assert 300 <= link.counters.duplicated <= 500
    assert set(sink.numbers) == set(range(2000))


def test_mtu_drops_what_is_longer_and_may_change_under_way() -> None:
    network, sink, link = Network(), Sink(), Link(mtu=1000)
    network.connect(Source(3000), sink, link, Link())
    network.change(0.9995, link, mtu=999)
    network.change(1.9995, link, mtu=9000)
    network.run(until=10.0)
    assert sink.numbers == [*range(1000), *range(2000, 3000)]
    assert link.counters.too_long == 1000


def test_rate_may_change_under_way() -> None:
    network, sink, link = Network(), Sink(), Link(rate=1e5)
    network.connect(Source(10, every=0.0), sink, link, Link())
    network.change(0.055, link, rate=1e4)
    network.run(until=10.0)
    assert sink.times == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.16, 0.26, 0.36, 0.46])


def test_blackout_lets_nothing_pass() -> None:
    network, sink, link = Network(), Sink(), Link()
    network.connect(Source(3000), sink, link, Link())
    network.blackout(0.9995, 1.0, link)
    network.run(until=10.0)
    assert sink.numbers == [*range(1000), *range(2000, 3000)]


def test_what_a_busy_node_finds_is_one_turn() -> None:
    sink = carry(Link(), Source(100), lag=0.02)
    assert len(set(sink.times)) <= 6
    assert sink.numbers == list(range(100))


def test_run_stops_when_the_condition_holds() -> None:
    network, sink = Network(), Sink()
    network.connect(Source(100), sink, Link(delay=0.5), Link())
    assert network.run(until=10.0, done=lambda: len(sink.numbers) == 10)
    assert network.now == pytest.approx(0.509)
    assert not network.run(until=20.0)
    assert network.now == 20.0


def test_node_that_asks_for_ever_is_found_out() -> None:
    class Restless(Sink):
        turns = 0

        def handle_timeout(self, now: float) -> None:
            self.turns += 1

        def next_timeout(self) -> float | None:
            return -math.inf

    network, restless = Network(), Restless()
    network.connect(restless, Sink(), Link(), Link())
    with pytest.raises(AssertionError, match="stuck"):
        network.run(until=1.0)
    assert restless.turns <= STUCK
