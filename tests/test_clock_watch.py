"""Sleep is told from drift and from clocks that are set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.clock_watch import NOTICED, ClockWatch

DRIFT = 0.0005
"""What NTP may make a clock run fast or slow (RFC 5905, section 11.3: the tolerance PHI is far below)."""


def test_a_jump_against_the_monotonic_clock_is_sleep_and_is_told_once() -> None:
    watch = ClockWatch(1_000.0, 10.0)
    assert watch.observe(1_005.0, 15.0) == 0.0
    assert watch.observe(1_105.0, 20.0) == pytest.approx(95.0)
    assert watch.observe(1_110.0, 25.0) == 0.0


@pytest.mark.parametrize(("seconds", "told"), [(NOTICED - 0.01, 0.0), (NOTICED, NOTICED)])
def test_a_nap_is_none(seconds: float, told: float) -> None:
    assert ClockWatch(0.0, 0.0).observe(seconds, 0.0) == told


def test_a_clock_that_is_set_back_is_no_sleep_and_hides_none_later() -> None:
    watch = ClockWatch(5_000.0, 0.0)
    assert watch.observe(1_400.0, 5.0) == 0.0
    assert watch.observe(1_465.0, 10.0) == pytest.approx(60.0)


@given(
    steps=st.lists(
        st.tuples(st.floats(0, 60), st.just(0.0) | st.floats(NOTICED + 1, 1e6), st.floats(-DRIFT, DRIFT)), max_size=50
    )
)
def test_every_sleep_is_told_with_its_length_and_no_drift_ever(steps: list[tuple[float, float, float]]) -> None:
    """Each step: seconds awake, seconds asleep, and by how much the wall clock runs fast."""
    wall, monotonic = 1.7e9, 0.0
    watch = ClockWatch(wall, monotonic)
    for awake, asleep, drift in steps:
        wall += awake * (1 + drift) + asleep
        monotonic += awake
        assert watch.observe(wall, monotonic) == pytest.approx(asleep, abs=60 * DRIFT + 1e-5)
