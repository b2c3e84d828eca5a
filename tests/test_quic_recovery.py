"""The pacer lets bursts go and keeps the rate. All else in the module `test_quic_bulk.py` compares with aioquic."""

from hypothesis import given
from hypothesis import strategies as st

from overlay.transports.quic_recovery import PACING_TURN, BurstPacer

PACKET = 1200
SECONDS = 2.0


def leave(pacer: BurstPacer, window: int, round_trip: float) -> list[tuple[float, int]]:
    """When how many packets leave, of somebody who always has more to send and asks when he is told to."""
    pacer.update_rate(window, round_trip)
    now, bursts = 1.0, []
    while now < 1.0 + SECONDS:
        packets = pacer.room(now)
        if packets:
            pacer.sent(packets * PACKET)
            bursts.append((now, packets))
        at = pacer.next_send_time(now)
        assert at is not None
        assert at >= now + PACING_TURN, "a timer for each packet"
        now = at
    return bursts


@given(window=st.integers(2 * PACKET, 2**20), round_trip=st.floats(0.001, 1.0))
def test_a_window_leaves_in_a_round_trip_and_at_most_a_little_of_it_together(window: int, round_trip: float) -> None:
    rate = window / round_trip
    bursts = leave(BurstPacer(max_datagram_size=PACKET), window, round_trip)
    # As many as aioquic's pacer lets go, or those of two turns.
    most = max(2 * PACKET, min(window / 4, 16 * PACKET), 2 * PACING_TURN * rate)
    assert max(packets for _, packets in bursts) * PACKET <= 1.01 * most
    total = sum(packets for _, packets in bursts) * PACKET
    assert total <= 1.01 * (SECONDS * rate + most)
    assert total >= 0.97 * SECONDS * rate - 2 * PACKET


def test_before_the_first_round_trip_all_may_leave() -> None:
    pacer = BurstPacer(max_datagram_size=PACKET)
    assert pacer.next_send_time(0.0) is None
    assert pacer.room(0.0) > 1000
    pacer.sent(1000 * PACKET)
    assert pacer.room(0.0) > 1000


def test_what_may_leave_now_need_not_wait() -> None:
    """For a timer that fires later than it was set to, too."""
    pacer = BurstPacer(max_datagram_size=PACKET)
    pacer.update_rate(100 * PACKET, 0.1)
    pacer.sent(pacer.room(1.0) * PACKET)
    assert pacer.next_send_time(1.0) == 1.0 + PACING_TURN
    assert pacer.next_send_time(1.1) is None
    assert pacer.room(1.1) > 1


def test_a_small_packet_takes_as_much_of_the_rate_as_it_has_bytes() -> None:
    """Two answers of a few bytes are no window of two large packets."""
    pacer = BurstPacer(max_datagram_size=PACKET)
    pacer.update_rate(2 * PACKET, 1.0)
    assert pacer.room(100.0) == 2
    for _ in range(20):
        assert pacer.next_send_time(100.0) is None
        pacer.update_after_send(100.0)
        pacer.was_smaller(PACKET // 20)
    assert pacer.room(100.0) == 1
    pacer.update_after_send(100.0)
    at = pacer.next_send_time(100.0)
    assert at is not None
    assert 100.4 < at <= 100.5
