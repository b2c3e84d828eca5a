"""Budgets: all or nothing, and children count in their parents."""

from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.budget import Budget


def test_reservation_is_all_or_nothing() -> None:
    budget = Budget(10)
    assert budget.reserve(10)
    assert not budget.reserve(1)
    budget.release(4)
    assert budget.reserve(4)
    assert budget.used == 10


def test_growth_leaves_its_share_to_newcomers() -> None:
    budget = Budget(100)
    assert not budget.reserve(76, spare=4)
    assert budget.reserve(75, spare=4)
    assert budget.reserve(25)


def test_full_parent_refuses_and_nothing_stays_reserved() -> None:
    parent = Budget(10)
    child = Budget(100, parent)
    assert not child.reserve(11)
    assert (child.used, parent.used) == (0, 0)


def test_move_takes_along_what_is_used_or_does_nothing() -> None:
    old, new, full = Budget(10), Budget(10), Budget(2)
    child = Budget(10, old)
    assert child.reserve(5)
    assert not child.move(full)
    assert (old.used, full.used) == (5, 0)
    assert child.move(new)
    assert child.move(new)
    assert (old.used, new.used) == (0, 5)
    child.release(5)
    assert new.used == 0


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.booleans())))
def test_parent_always_holds_the_sum_and_no_limit_is_passed(steps: list[tuple[int, int, bool]]) -> None:
    parent = Budget(60)
    children = [Budget(40, parent) for _ in range(3)]
    for number, size, taking in steps:
        child = children[number]
        if taking:
            child.reserve(size, spare=4 if size % 2 else 0)
        else:
            child.release(min(size, child.used))
        assert parent.used == sum(child.used for child in children) <= parent.limit
        assert all(0 <= child.used <= child.limit for child in children)
