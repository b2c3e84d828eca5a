"""Loss detection after RFC 9002 section 6, on bursts; and against a model that knows single packets only."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.udp.payload import Ack
from overlay.protocol.udp.recovery import (
    MAXIMUM_PACKET_THRESHOLD,
    MAXIMUM_PROBE_INTERVAL,
    MAXIMUM_TIME_THRESHOLD,
    PACKET_THRESHOLD,
    Outcome,
    Recovery,
)
from overlay.protocol.udp.rtt import RoundTripTime
from overlay.protocol.udp.sent import Part, SentBurst

SIZE, LAST = 1000, 300


def burst(first: int, last: int, now: float, *, counted: bool = True) -> SentBurst:
    """A burst whose last datagram is short."""
    return SentBurst(first, now, last=last, size=SIZE, last_size=LAST if last > first else SIZE, counted=counted)


def ack(*ranges: tuple[int, int], delay: float = 0.0) -> Ack:
    return Ack(ranges[0][1], delay, list(ranges))


def numbers(parts: list[Part]) -> list[int]:
    return [number for _, low, high in parts for number in range(low, high + 1)]


def measured(rtt: float = 0.1) -> Recovery:
    """With a round-trip time that is known and steady."""
    recovery = Recovery(RoundTripTime())
    for _ in range(100):
        recovery.rtt.update(rtt, 0.0)
    return recovery


def test_whole_burst_is_acknowledged_at_once() -> None:
    recovery = Recovery(RoundTripTime())
    recovery.sent(burst(0, 9, 1.0))
    assert recovery.in_flight == 9 * SIZE + LAST
    outcome = recovery.acknowledge(ack((0, 9), delay=0.01), 1.1)
    assert numbers(outcome.acked) == list(range(10))
    assert outcome.acked_bytes == 9 * SIZE + LAST
    assert outcome.rtt == pytest.approx(0.1)
    assert recovery.in_flight == 0
    assert recovery.next_timeout() is None


def test_same_ack_again_changes_nothing() -> None:
    recovery = Recovery(RoundTripTime())
    recovery.sent(burst(0, 9, 1.0))
    recovery.acknowledge(ack((0, 4)), 1.1)
    assert recovery.acknowledge(ack((0, 4)), 1.2) == Outcome()
    assert recovery.in_flight == 4 * SIZE + LAST


def test_hole_in_a_burst_is_lost_by_the_packet_threshold() -> None:
    recovery = measured()
    recovery.sent(burst(0, 9, 1.0))
    outcome = recovery.acknowledge(ack((7, 9), (3, 4), (0, 0)), 1.1)
    assert numbers(outcome.acked) == [0, 3, 4, 7, 8, 9]
    assert numbers(outcome.lost) == [1, 2, 5, 6]
    assert outcome.lost_bytes == 4 * SIZE
    assert outcome.largest_lost_sent_at == 1.0
    assert recovery.in_flight == 0
    assert recovery.lost_packets == 4


def test_packets_within_the_threshold_wait_for_the_time_threshold() -> None:
    recovery = measured(0.1)
    recovery.sent(burst(0, 9, 1.0))
    outcome = recovery.acknowledge(ack((9, 9)), 1.1)
    assert numbers(outcome.lost) == list(range(7))
    due = recovery.next_timeout()
    assert due is not None
    assert due == pytest.approx(1.0 + 9 / 8 * 0.1)
    assert recovery.handle_timeout(due - 0.001) is None
    late = recovery.handle_timeout(due)
    assert late is not None
    assert numbers(late.lost) == [7, 8]
    assert not late.probe
    assert recovery.in_flight == 0
    assert recovery.next_timeout() is None


def test_packets_above_the_largest_acknowledged_are_not_lost() -> None:
    recovery = measured(0.1)
    recovery.sent(burst(0, 9, 1.0))
    recovery.sent(burst(10, 19, 1.0))
    outcome = recovery.acknowledge(ack((16, 16), (0, 9)), 1.1)
    assert numbers(outcome.lost) == [10, 11, 12, 13]
    assert recovery.in_flight == 4 * SIZE + LAST


def test_probe_timeout_doubles_up_to_its_limit() -> None:
    recovery = measured(0.1)
    recovery.sent(burst(0, 0, 1.0))
    intervals = []
    now = 1.0
    for _ in range(8):
        due = recovery.next_timeout()
        assert due is not None
        intervals.append(due - now)
        now = due
        outcome = recovery.handle_timeout(now)
        assert outcome is not None
        assert outcome.probe
        assert not outcome.lost
    base = recovery.rtt.probe_timeout
    assert intervals[:3] == pytest.approx([base, 2 * base, 4 * base])
    assert intervals[-1] == MAXIMUM_PROBE_INTERVAL
    assert recovery.probe_count == 8
    recovery.acknowledge(ack((0, 0)), now)
    assert recovery.probe_count == 0


def test_probe_interval_may_be_longer_on_a_long_path() -> None:
    recovery = measured(5.0)
    recovery.sent(burst(0, 0, 1.0))
    recovery.probe_count = 10
    assert recovery.next_timeout() == pytest.approx(1.0 + 2 * recovery.rtt.probe_timeout)


def test_oldest_packet_is_the_first_that_is_outstanding() -> None:
    recovery = measured()
    assert recovery.oldest() is None
    recovery.sent(burst(0, 0, 1.0, counted=False))
    recovery.sent(burst(1, 5, 1.0))
    part = recovery.oldest()
    assert part is not None
    assert part[1:] == (1, 1)
    recovery.acknowledge(ack((1, 2)), 1.1)
    part = recovery.oldest()
    assert part is not None
    assert part[1:] == (3, 3)


def test_mtu_probe_does_not_count() -> None:
    recovery = measured()
    recovery.sent(burst(0, 0, 1.0, counted=False))
    assert recovery.in_flight == 0
    assert recovery.next_timeout() is None
    recovery.sent(burst(1, 9, 1.0))
    outcome = recovery.acknowledge(ack((1, 9)), 1.2)
    assert numbers(outcome.lost) == [0]
    assert outcome.lost_bytes == 0
    assert outcome.largest_lost_sent_at is None


def test_late_packet_makes_the_packet_threshold_patient() -> None:
    recovery = measured()
    recovery.sent(burst(0, 99, 1.0))
    lost = recovery.acknowledge(ack((41, 99), (0, 39)), 1.1)
    assert numbers(lost.lost) == [40]
    assert recovery.packet_threshold == PACKET_THRESHOLD
    late = recovery.acknowledge(ack((0, 99)), 1.11)
    assert late.spurious
    assert not late.acked
    assert recovery.packet_threshold == 60
    recovery.sent(burst(100, 199, 2.0))
    assert not recovery.acknowledge(ack((101, 150)), 2.1).lost


def test_late_packet_makes_the_time_threshold_patient() -> None:
    recovery = measured(0.1)
    for number in range(30):
        at = 10.0 * number
        recovery.sent(burst(2 * number, 2 * number + 1, at))
        recovery.acknowledge(ack((2 * number + 1, 2 * number + 1)), at + 0.1)
        due = recovery.next_timeout()
        assert due is not None
        recovery.handle_timeout(due)
        recovery.acknowledge(ack((2 * number, 2 * number + 1)), due + 0.1)
    assert recovery.time_threshold == MAXIMUM_TIME_THRESHOLD
    assert recovery.packet_threshold == PACKET_THRESHOLD


def test_loss_that_is_not_named_with_the_late_one_stays_a_loss() -> None:
    """A late packet among true losses: the controller is told when the last true one was."""
    recovery = measured()
    recovery.sent(burst(0, 19, 1.0))
    assert numbers(recovery.acknowledge(ack((10, 19)), 1.1).lost) == list(range(10))
    late = recovery.acknowledge(ack((10, 19), (4, 5)), 1.2)
    assert late.spurious
    assert late.last_loss == 1.1
    again = recovery.acknowledge(ack((10, 19), (4, 5)), 1.3)
    assert not again.spurious, "the same news again is none"
    assert recovery.acknowledge(ack((0, 19)), 1.4).last_loss == -math.inf


def test_late_probe_of_the_mtu_is_no_reordering() -> None:
    recovery = measured()
    recovery.sent(burst(0, 0, 1.0, counted=False))
    recovery.sent(burst(1, 9, 1.0))
    recovery.acknowledge(ack((1, 9)), 1.1)
    assert not recovery.acknowledge(ack((0, 9)), 1.2).spurious
    assert recovery.packet_threshold == PACKET_THRESHOLD


def test_other_path_gives_up_what_is_under_way_on_the_old_one() -> None:
    recovery = measured()
    recovery.sent(burst(0, 9, 1.0))
    recovery.sent(burst(10, 19, 1.0))
    recovery.acknowledge(ack((9, 9), (3, 4)), 1.1)
    assert numbers(recovery.path_changed()) == [7, 8, *range(10, 20)]
    assert recovery.in_flight == 0
    assert recovery.next_timeout() is None
    smoothed = recovery.rtt.smoothed
    assert recovery.acknowledge(ack((0, 19)), 9.0) == Outcome()
    assert recovery.rtt.smoothed == smoothed
    recovery.sent(burst(20, 29, 9.0))
    assert numbers(recovery.acknowledge(ack((20, 29)), 9.1).acked) == list(range(20, 30))


def test_packet_threshold_has_a_limit() -> None:
    recovery = measured()
    recovery.sent(burst(0, 9999, 1.0))
    recovery.acknowledge(ack((1, 9999)), 1.1)
    recovery.acknowledge(ack((0, 9999)), 1.2)
    assert recovery.packet_threshold == MAXIMUM_PACKET_THRESHOLD


def test_losses_over_a_long_time_are_persistent_congestion() -> None:
    recovery = measured(0.1)
    recovery.sent(burst(0, 0, 0.0))
    recovery.acknowledge(ack((0, 0)), 0.1)
    for number in range(1, 6):
        recovery.sent(burst(number, number, float(number)))
    recovery.sent(burst(6, 9, 6.0))
    assert recovery.acknowledge(ack((9, 9)), 6.1).persistent_congestion


def test_losses_around_an_arrival_are_no_persistent_congestion() -> None:
    recovery = measured(0.1)
    for number in range(6):
        recovery.sent(burst(number, number, float(number)))
    outcome = recovery.acknowledge(ack((5, 5), (3, 3), (1, 1)), 5.1)
    assert numbers(outcome.lost) == [0, 2, 4]
    assert not outcome.persistent_congestion


@given(st.data())
def test_every_packet_ends_once_and_the_bytes_in_flight_are_exact(draw: st.DataObject) -> None:
    """Bursts of any size, ACKs of any kind in any order, timers: against a set of packets."""
    recovery = Recovery(RoundTripTime())
    outstanding: dict[int, int] = {}
    ended: set[int] = set()
    next_number, now = 0, 0.0

    def settle(outcome: Outcome) -> None:
        acked, lost = numbers(outcome.acked), numbers(outcome.lost)
        assert len(set(acked) | set(lost)) == len(acked) + len(lost)
        assert not ended & (set(acked) | set(lost))
        assert acked == sorted(acked)
        assert lost == sorted(lost)
        assert outcome.acked_bytes == sum(outstanding.pop(number) for number in acked)
        assert outcome.lost_bytes == sum(outstanding.pop(number) for number in lost)
        ended.update(acked, lost)

    for _ in range(draw.draw(st.integers(1, 25))):
        now += draw.draw(st.sampled_from([0.0, 0.01, 0.1, 1.0]))
        action = draw.draw(st.sampled_from(["send", "send", "ack", "ack", "timer"]))
        if action == "send":
            next_number += draw.draw(st.sampled_from([0, 0, 1]))
            count = draw.draw(st.integers(1, 12))
            record = burst(next_number, next_number + count - 1, now)
            recovery.sent(record)
            for number in range(next_number, next_number + count):
                outstanding[number] = record.bytes_of(number, number)
            next_number += count
        elif action == "ack" and next_number:
            named = draw.draw(st.sets(st.integers(0, next_number - 1), min_size=1, max_size=30))
            ranges: list[tuple[int, int]] = []
            for number in sorted(named):
                if ranges and ranges[-1][1] == number - 1:
                    ranges[-1] = (ranges[-1][0], number)
                else:
                    ranges.append((number, number))
            before = set(outstanding)
            outcome = recovery.acknowledge(ack(*reversed(ranges)), now)
            assert set(numbers(outcome.acked)) == named & before
            settle(outcome)
        elif action == "timer":
            due = recovery.next_timeout()
            if due is not None:
                now = max(now, due)
                late = recovery.handle_timeout(now)
                assert late is not None
                settle(late)
                assert late.probe or late.lost
        assert recovery.in_flight == sum(outstanding.values())
        assert (recovery.next_timeout() is not None) == bool(outstanding)
        assert recovery.floor <= min(outstanding, default=next_number)
