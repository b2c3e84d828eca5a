"""Per second: right from the first second on, and forgetful."""

from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.driver.rate import LEAST_AGE, Rate


def test_nothing_came() -> None:
    assert Rate().per_second(5.0) == 0.0


@pytest.mark.parametrize("each", [0.001, 0.05, 0.3])
@pytest.mark.parametrize("start", [0.0, 5000.0])
def test_even_flow_is_told_right_from_the_first_second_on(each: float, start: float) -> None:
    rate = Rate()
    for step in range(int(12 / each)):
        now = start + step * each
        rate.add(1000 * each, now)
        if now - start >= LEAST_AGE:
            assert rate.per_second(now) == pytest.approx(1000, rel=0.35 if each > 0.1 else 0.06), now - start


def test_burst_counts_as_what_came_in_one_second() -> None:
    rate = Rate()
    for _ in range(1000):
        rate.add(1, 7.0)
    assert rate.per_second(7.0) == pytest.approx(1000, rel=0.11)
    assert rate.per_second(7.001) == pytest.approx(1000, rel=0.11)


def test_flow_that_ends_is_forgotten() -> None:
    rate = Rate(5.0)
    for step in range(60_000):
        rate.add(1, step / 1000)
    assert rate.per_second(60.0) == pytest.approx(1000, rel=0.01)
    assert rate.per_second(65.0) == pytest.approx(1000 * exp(-1), rel=0.01)
    assert rate.per_second(75.0) == pytest.approx(1000 * exp(-3), rel=0.01)
    assert rate.per_second(1e9) == 0.0


def test_flow_after_a_pause_climbs_as_it_fell() -> None:
    rate = Rate(5.0)
    rate.add(1, 0.0)
    for step in range(5000):
        rate.add(1, 1000 + step / 1000)
    assert rate.per_second(1005.0) == pytest.approx(1000 * (1 - exp(-1)), rel=0.01)


@given(
    pauses=st.lists(st.floats(0, 100), min_size=1, max_size=30),
    counts=st.lists(st.integers(0, 10**9), min_size=30, max_size=30),
    seconds=st.floats(1, 60),
)
def test_it_is_the_weighted_mean_that_it_says(pauses: list[float], counts: list[int], seconds: float) -> None:
    """Against the sum over all that ever came."""
    rate = Rate(seconds)
    now = 0.0
    came: list[tuple[float, int]] = []
    for pause, count in zip(pauses, counts, strict=False):
        now += pause
        rate.add(count, now)
        came.append((now, count))
    now += pauses[0]
    age = max(now - came[0][0], LEAST_AGE)
    expected = sum(count * exp((at - now) / seconds) for at, count in came) / (seconds * (1 - exp(-age / seconds)))
    assert rate.per_second(now) == pytest.approx(expected)
    assert rate.per_second(now) <= sum(counts) / LEAST_AGE * 1.6
