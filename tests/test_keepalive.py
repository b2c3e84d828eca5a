"""The keepalive's interval against NATs with less and more patience."""

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from overlay.protocol.keepalive import REMEMBERED, STEP, Keepalive


def answer(keepalive: Keepalive, now: float = 0.0) -> float:
    """A PING after the present interval comes back; the next interval."""
    keepalive.answered(keepalive.interval, now)
    return keepalive.interval


def fail(keepalive: Keepalive, now: float = 0.0, *, late: float = 0.0) -> float:
    keepalive.failed(keepalive.interval + late, now)
    return keepalive.interval


def test_it_grows_by_steps_up_to_the_most() -> None:
    keepalive = Keepalive(most=25.0)
    assert [keepalive.interval, *(answer(keepalive) for _ in range(4))] == [15, 20, 25, 25, 25]
    keepalive = Keepalive(10.0, most=12.5)
    assert [keepalive.interval, answer(keepalive), answer(keepalive)] == [10, 12.5, 12.5]


def test_an_idle_time_out_that_is_shorter_than_the_first_interval_is_the_limit() -> None:
    keepalive = Keepalive(15.0, most=5.0)
    assert [keepalive.interval, answer(keepalive), fail(keepalive)] == [5, 5, 5]


def test_a_gap_that_was_too_long_is_not_tried_again_for_ten_minutes() -> None:
    keepalive = Keepalive(most=25.0)
    answer(keepalive, 0.0)
    assert fail(keepalive, 100.0, late=0.003) == 15
    assert answer(keepalive, 100.0 + REMEMBERED - 1) == 15
    assert answer(keepalive, 100.0 + REMEMBERED) == 20


def test_a_second_failure_begins_the_ten_minutes_anew() -> None:
    keepalive = Keepalive(most=25.0)
    for failed_at in (100.0, 100.0 + REMEMBERED + 1):
        while keepalive.interval == 15:
            answer(keepalive, failed_at - 1)
        assert fail(keepalive, failed_at) == 15
        assert answer(keepalive, failed_at + REMEMBERED - 1) == 15


def test_what_has_worked_is_what_it_goes_back_to() -> None:
    keepalive = Keepalive(most=25.0)
    answer(keepalive)
    answer(keepalive)
    assert fail(keepalive) == 20
    assert answer(keepalive) == 20


def test_when_what_has_worked_fails_all_begins_anew() -> None:
    """The NAT is another one; what failed is remembered nevertheless."""
    keepalive = Keepalive(most=25.0)
    for _ in range(3):
        answer(keepalive)
    assert fail(keepalive) == 15
    assert [answer(keepalive), answer(keepalive)] == [20, 20]
    assert fail(keepalive) == 15
    assert answer(keepalive) == 15


@pytest.mark.parametrize("idle", [0.0, 1.0, 14.0])
def test_a_short_gap_proves_nothing(idle: float) -> None:
    """There was traffic: neither did the interval work, nor was it too long."""
    keepalive = Keepalive(most=25.0)
    keepalive.answered(idle, 0.0)
    assert keepalive.interval == 15
    answer(keepalive)
    keepalive.failed(idle, 0.0)
    assert [keepalive.interval, answer(keepalive)] == [20, 25]


def test_a_gap_below_the_interval_that_was_too_long_bounds_it_too() -> None:
    """A PING may be sent earlier than it was due; what fails after 17 s does not live for 20 s."""
    keepalive = Keepalive(most=25.0)
    answer(keepalive)
    answer(keepalive)
    keepalive.failed(17.0, 0.0)
    assert [keepalive.interval, answer(keepalive), answer(keepalive)] == [15, 15, 15]


def test_a_gap_that_our_own_absence_made_longer_does_not_count_against_the_interval() -> None:
    keepalive = Keepalive(most=25.0)
    answer(keepalive)
    assert fail(keepalive, late=300.0) == 20
    assert answer(keepalive) == 25


def test_a_gap_measured_a_little_short_counts() -> None:
    """Two readings of a clock are subtracted: 0.1 + 15 - 0.1 is less than 15."""
    keepalive = Keepalive(most=25.0)
    keepalive.answered(0.1 + 15.0 - 0.1 - 1e-9, 0.0)
    assert keepalive.interval == 20


@given(
    patience=st.floats(15.1, 60),
    most=st.floats(15, 60),
    late=st.lists(st.floats(0, 0.09), min_size=1, max_size=20),
    traffic=st.lists(st.booleans(), min_size=1, max_size=20),
)
def test_it_finds_the_patience_of_a_nat_and_rarely_overdoes_it(
    patience: float, most: float, late: list[float], traffic: list[bool]
) -> None:
    """One failure in ten minutes at most, and between them as seldom a PING as the NAT lets us."""
    levels = [*(15 + STEP * step for step in range(9) if 15 + STEP * step < most), most]
    # Where a timer's lateness decides, either is right.
    assume(not any(level < patience <= level + 0.1 for level in levels))
    best = max(level for level in levels if level < patience)
    keepalive = Keepalive(most=most)
    now, failures, after = 0.0, list[float](), list[float]()
    for turn in range(400):
        busy = turn % 2 and traffic[turn % len(traffic)]
        gap = 1.0 if busy else keepalive.interval + late[turn % len(late)]
        now += gap
        if gap < patience:
            keepalive.answered(gap, now)
        else:
            keepalive.failed(gap, now)
            failures.append(now)
            after.append(keepalive.interval)
    assert bool(failures) == (levels[-1] >= patience)
    assert all(later - earlier > REMEMBERED for earlier, later in pairwise(failures))
    assert after == [best] * len(failures)
    assert failures or keepalive.interval == best


@given(
    steps=st.lists(
        st.tuples(st.booleans(), st.floats(0, 1e4), st.floats(0, 1e4)),
        max_size=60,
    ),
    first=st.floats(0.1, 50),
    most=st.floats(0.1, 50),
)
def test_it_stays_between_its_bounds_and_never_grows_by_a_failure(
    steps: list[tuple[bool, float, float]], first: float, most: float
) -> None:
    keepalive = Keepalive(first, most=most)
    now = 0.0
    for answered, gap, seconds in steps:
        now += seconds
        before = keepalive.interval
        if answered:
            keepalive.answered(gap, now)
            assert before <= keepalive.interval <= before + STEP
        else:
            keepalive.failed(gap, now)
            assert keepalive.interval <= before
        assert min(first, most) <= keepalive.interval <= most
