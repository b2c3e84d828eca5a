"""What an acknowledgement changes: the controller's samples, the outbox, the size of packets."""

from collections.abc import Callable
from random import Random

import pytest
from udp_ends import FixedWindow

from overlay.protocol.frames import ProtocolViolation
from overlay.protocol.udp.bbr import Bbr
from overlay.protocol.udp.congestion import Congestion
from overlay.protocol.udp.cubic import Cubic
from overlay.protocol.udp.flight import PROBES, Flight
from overlay.protocol.udp.mtu import LOST_IN_A_ROW, MtuSearch
from overlay.protocol.udp.outbox import Outbox
from overlay.protocol.udp.pacing import Pacer
from overlay.protocol.udp.payload import Ack
from overlay.protocol.udp.rtt import RoundTripTime
from overlay.protocol.udp.sent import SentBurst


class Set:
    """A flight and what it is tied to."""

    def __init__(self, size: int = 1200, window: int = 20_000) -> None:
        self.congestion = FixedWindow(size, window)
        self.mtu = MtuSearch(300)
        self.mtu.size = size
        self.outbox = Outbox()
        self.rtt = RoundTripTime()
        self.flight = Flight(self.congestion, Pacer(size), self.mtu, self.rtt, self.outbox)

    def send(self, count: int, now: float, *, size: int = 1200, counted: bool = True) -> SentBurst:
        first = self.flight.next_number
        self.flight.next_number += count
        record = SentBurst(first, now, last=first + count - 1, size=size, last_size=size, counted=counted)
        self.flight.sent(record, now)
        return record

    def ack(self, *ranges: tuple[int, int], now: float) -> None:
        self.flight.acknowledge(Ack(ranges[0][1], 0.0, list(ranges)), now)


def test_window_fills_and_opens_again() -> None:
    one = Set()
    assert one.flight.allowed(0.0) == 20_000
    one.send(10, 0.0)
    assert one.flight.window_left() == 8000
    assert one.flight.next_send_time(0.0) == 0.0
    one.send(6, 0.0)
    assert one.flight.next_send_time(0.0) is None
    one.ack((0, 9), now=0.1)
    assert one.flight.allowed(0.1) == 20_000 - 7200


def test_controller_gets_one_sample_for_each_ack() -> None:
    one = Set()
    one.send(10, 1.0)
    one.ack((5, 9), (0, 1), now=1.1)
    [sample] = one.congestion.samples
    assert (sample.acked, sample.lost, sample.in_flight, sample.prior_in_flight) == (8400, 3600, 0, 12_000)
    assert sample.rtt == pytest.approx(0.1)
    assert sample.minimum_rtt == pytest.approx(0.1)
    assert sample.delivered == 8400
    assert sample.rate == pytest.approx(84_000)
    assert sample.round_start
    assert sample.largest_lost_sent_at == 1.0
    one.ack((5, 9), now=1.2)
    assert len(one.congestion.samples) == 1


def test_rate_while_the_application_is_the_limit_is_marked() -> None:
    one = Set()
    one.flight.application_limited()
    one.send(2, 1.0)
    one.ack((0, 1), now=1.1)
    one.send(2, 1.2)
    one.ack((2, 3), now=1.3)
    assert [sample.rate_app_limited for sample in one.congestion.samples] == [True, False]


def test_ack_of_what_was_never_sent_is_a_violation() -> None:
    one = Set()
    one.send(2, 1.0)
    with pytest.raises(ProtocolViolation):
        one.ack((0, 2), now=1.1)


def test_lost_content_goes_back_to_the_outbox() -> None:
    one = Set()
    one.outbox.add_stream(5, 0, bytes(10_000))
    record = SentBurst(0, 1.0)
    payloads = one.outbox.take_run(0, 1171, 64, record)
    record.last, record.size, record.last_size = len(payloads) - 1, 1200, 1200
    one.flight.next_number = len(payloads)
    one.flight.sent(record, 1.0)
    before = one.outbox.stream_bytes
    one.ack((4, 7), (0, 0), now=1.1)
    assert one.outbox.stream_bytes - before == 3 * 1165


def test_probe_timeout_lets_two_packets_leave_with_the_oldest_content() -> None:
    one = Set()
    one.outbox.control.write(b"control")
    record = SentBurst(0, 1.0)
    one.outbox.fill(0, 1171, b"", record)
    record.last, record.size, record.last_size = 0, 1200, 1200
    one.flight.next_number = 1
    one.flight.sent(record, 1.0)
    due = one.flight.recovery.next_timeout()
    assert due is not None
    one.flight.handle_timeout(due - 0.1)
    assert one.flight.probes == 0
    one.flight.handle_timeout(due)
    assert one.flight.probes == PROBES
    assert one.outbox.control.ready
    one.ack((0, 0), now=due + 0.1)
    assert one.flight.probes == 0
    assert not one.outbox


def test_late_loss_is_reported_as_spurious() -> None:
    one = Set()
    one.send(10, 1.0)
    one.ack((5, 9), now=1.1)
    one.ack((0, 9), now=1.11)
    assert one.congestion.spurious == 1


def test_persistent_congestion_is_reported() -> None:
    one = Set()
    one.send(1, 0.0)
    one.ack((0, 0), now=0.1)
    for at in range(1, 9):
        one.send(1, float(at))
    one.ack((8, 8), now=8.1)
    assert one.congestion.persistent == 1


def test_probe_of_the_mtu_that_arrives_makes_packets_larger() -> None:
    one = Set(300)
    assert one.mtu.probe_to_send(0.0) == 1200
    one.mtu.probe_sent(1200, 0.0, 1.0)
    one.send(1, 0.0, counted=False)
    one.ack((0, 0), now=0.1)
    assert one.mtu.size == 1200
    assert one.congestion.samples == []
    assert one.outbox.add_datagram(bytes(1170))
    assert one.congestion.window >= 2400


def test_probe_of_the_mtu_that_is_lost_costs_nothing() -> None:
    one = Set(300)
    assert one.mtu.probe_to_send(0.0) == 1200
    one.mtu.probe_sent(1200, 0.0, 100.0)
    one.send(1, 0.0, counted=False)
    one.send(4, 0.0, size=300)
    one.ack((1, 4), now=0.1)
    assert [sample.lost for sample in one.congestion.samples] == [0]
    assert one.mtu.probe_to_send(0.2) == 1200


def test_large_packets_lost_and_small_ones_not_make_packets_small() -> None:
    one = Set()
    one.send(LOST_IN_A_ROW, 1.0)
    one.send(4, 1.0, size=100)
    one.ack((LOST_IN_A_ROW, LOST_IN_A_ROW + 3), now=1.1)
    assert one.mtu.size == 300
    assert one.mtu.black_holes == 1


def test_short_packet_at_the_end_of_a_burst_says_nothing_about_the_others() -> None:
    """Each answer of a server ends with a short packet; that it arrives must not hide that no full one does."""
    one = Set()
    for turn in range(4):
        record = SentBurst(5 * turn, 1.0 + turn, last=5 * turn + 4, size=1200, last_size=400)
        one.flight.next_number = record.last + 1
        one.flight.sent(record, record.sent_at)
        one.ack((record.last, record.last), now=record.sent_at + 0.1)
    assert one.mtu.black_holes == 1


def test_new_path_begins_anew() -> None:
    one = Set()
    one.rtt.update(0.1, 0.0)
    one.flight.path_changed(1.0)
    assert not one.rtt.measured
    assert one.mtu.size == 300


def test_new_path_hears_nothing_of_the_old_one() -> None:
    """RFC 9000 section 9.4: neither round-trip time nor controller; what was under way is sent again."""
    one = Set()
    one.outbox.add_stream(5, 0, bytes(10_000))
    record = SentBurst(0, 1.0)
    payloads = one.outbox.take_run(0, 1171, 64, record)
    record.last, record.size, record.last_size = len(payloads) - 1, 1200, 1200
    one.flight.next_number = len(payloads)
    one.flight.sent(record, 1.0)
    one.flight.path_changed(2.0)
    assert one.flight.window_left() == one.congestion.window
    assert one.outbox.stream_bytes == 10_000
    one.ack((0, record.last), now=2.1)
    assert not one.rtt.measured
    assert one.congestion.samples == []


@pytest.mark.parametrize("make", [Cubic, lambda size: Bbr(size, Random(1).random)])
def test_new_path_begins_with_ten_packets_of_its_own_size(make: Callable[[int], Congestion]) -> None:
    mtu = MtuSearch(300)
    congestion = make(300)
    flight = Flight(congestion, Pacer(300), mtu, RoundTripTime(), Outbox())
    mtu.size = 60_000
    flight.resize()
    assert congestion.window == 120_000
    flight.path_changed(1.0)
    assert congestion.window == 3000
