"""Which packets have arrived: the same as a set says, in bounded memory, and never the same one twice."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.udp.ranges import ACKS_REPEATED, MAXIMUM_RANGES, ReceivedNumbers


def of(*numbers: int) -> ReceivedNumbers:
    received = ReceivedNumbers()
    for number in numbers:
        received.add(number)
    return received


def spelled(ranges: list[tuple[int, int]]) -> set[int]:
    return {number for low, high in ranges for number in range(low, high + 1)}


def check_order(ranges: list[tuple[int, int]]) -> None:
    """Downwards, with a gap between any two."""
    assert all(low <= high for low, high in ranges)
    assert all(upper[0] > lower[1] + 1 for upper, lower in pairwise(ranges))


@given(st.lists(st.integers(0, 60), max_size=100))
def test_few_numbers_are_kept_as_a_set_keeps_them(numbers: list[int]) -> None:
    received, model = ReceivedNumbers(), set[int]()
    for number in numbers:
        assert (number in received) == (number in model)
        assert received.add(number) == (number not in model)
        model.add(number)
        assert spelled(received.ranges()) == model
        check_order(received.ranges())
    assert received.largest == max(model, default=-1)


@given(st.lists(st.integers(0, 1000), max_size=400))
def test_many_gaps_are_forgotten_from_below_and_nothing_counts_twice(numbers: list[int]) -> None:
    received, model = ReceivedNumbers(), set[int]()
    for number in numbers:
        if received.add(number):
            assert number not in model
            assert number >= received.floor or not model
            model.add(number)
        else:
            assert number in model or number < received.floor
        assert len(received) <= MAXIMUM_RANGES
        assert {one for one in model if one >= received.floor} == spelled(received.ranges())
        assert number in received


def test_hundred_thousand_numbers_with_gaps_keep_64_ranges() -> None:
    received = of(*range(0, 200_000, 2))
    assert len(received) == MAXIMUM_RANGES
    assert not received.add(7)
    assert not received.add(8)
    assert received.add(199_997)


def test_number_that_fills_a_gap_joins_its_neighbours() -> None:
    received = of(0, 2, 4)
    received.add(1)
    assert received.ranges() == [(4, 4), (0, 2)]
    received.add(3)
    assert received.ranges() == [(0, 4)]
    assert len(received) == 1


def test_nothing_has_arrived_at_first() -> None:
    received = ReceivedNumbers()
    assert received.ranges() == received.take_ranges() == []
    assert len(received) == 0
    assert 0 not in received


def test_change_is_named_by_so_many_acks_and_no_more() -> None:
    received = of(0, 2)
    assert received.take_ranges() == [(2, 2), (0, 0)]
    for number in range(3, 3 + ACKS_REPEATED - 1):
        received.add(number)
        assert received.take_ranges() == [(2, number), (0, 0)]
    received.add(100)
    assert received.take_ranges() == [(100, 100), (2, 2 + ACKS_REPEATED - 1)]


def test_straggler_is_named_although_it_lies_far_back() -> None:
    received = of(0, 2, 4)
    for number in range(6, 100, 2):
        received.add(number)
        received.take_ranges()
    assert (0, 0) not in received.take_ranges()
    received.add(1)
    assert (0, 2) in received.take_ranges()


@given(st.lists(st.lists(st.integers(0, 200), max_size=5), max_size=60))
def test_every_number_is_named_by_the_next_ack(batches: list[list[int]]) -> None:
    received = ReceivedNumbers()
    for batch in batches:
        fresh = {number for number in batch if received.add(number)}
        named = received.take_ranges()
        check_order(named)
        assert {number for number in fresh if number >= received.floor} <= spelled(named)
        assert spelled(named) <= spelled(received.ranges())
