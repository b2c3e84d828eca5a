"""Round-trip time after RFC 9002 section 5."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.udp.rtt import GRANULARITY, INITIAL_RTT, MAX_ACK_DELAY, RoundTripTime


def test_before_the_first_sample_the_initial_value_counts() -> None:
    rtt = RoundTripTime()
    assert not rtt.measured
    assert rtt.probe_timeout == pytest.approx(3 * INITIAL_RTT + MAX_ACK_DELAY)
    assert RoundTripTime(0.1).probe_timeout == pytest.approx(0.3 + MAX_ACK_DELAY)


def test_first_sample_is_taken_as_it_is() -> None:
    rtt = RoundTripTime()
    rtt.update(0.1, 0.02)
    assert (rtt.latest, rtt.smoothed, rtt.variance, rtt.minimum) == (0.1, 0.1, 0.05, 0.1)


def test_later_samples_are_smoothed_without_the_peers_delay() -> None:
    """The sums of RFC 9002 section 5.3, with this section's rttvar before smoothed_rtt."""
    rtt = RoundTripTime()
    rtt.update(0.1, 0.0)
    rtt.update(0.14, 0.02)
    assert rtt.variance == pytest.approx(0.75 * 0.05 + 0.25 * 0.02)
    assert rtt.smoothed == pytest.approx(7 / 8 * 0.1 + 1 / 8 * 0.12)
    assert rtt.minimum == 0.1


def test_delay_counts_only_as_far_as_the_minimum_allows() -> None:
    rtt = RoundTripTime()
    rtt.update(0.1, 0.0)
    rtt.update(0.11, 5.0)
    assert rtt.smoothed == pytest.approx(7 / 8 * 0.1 + 1 / 8 * 0.11)


def test_variance_has_a_floor_in_the_probe_timeout() -> None:
    rtt = RoundTripTime()
    for _ in range(100):
        rtt.update(50e-6, 0.0)
    assert rtt.probe_timeout == pytest.approx(50e-6 + GRANULARITY + MAX_ACK_DELAY)
    assert rtt.persistent_congestion == pytest.approx(3 * rtt.probe_timeout)


def test_reset_begins_anew() -> None:
    rtt = RoundTripTime()
    rtt.update(2.0, 0.0)
    rtt.reset()
    assert not rtt.measured
    assert rtt.smoothed == INITIAL_RTT


@given(st.lists(st.tuples(st.floats(0, 60), st.floats(0, 60)), min_size=1, max_size=50))
def test_estimates_stay_between_the_samples(samples: list[tuple[float, float]]) -> None:
    rtt = RoundTripTime()
    for sample, delay in samples:
        rtt.update(sample, delay)
    values = [sample for sample, _ in samples]
    assert min(values) == rtt.minimum <= rtt.smoothed * (1 + 1e-9) + 1e-12
    assert rtt.smoothed <= max(values) * (1 + 1e-9)
    assert 0 <= rtt.variance <= max(values)
