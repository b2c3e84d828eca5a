"""Whose turn it is to be read, and when a lane is full."""

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from overlay.protocol.driver.inbox import CONTROL_RUN, ITEM_COST, LANE_ITEMS, LANE_SIZE, Inbox, Lane
from overlay.protocol.stream import Priority

CONTROL, BULK = Priority.CONTROL, Priority.BULK


def drain(inbox: Inbox[str]) -> str:
    taken = []
    while (item := inbox.pop()) is not None:
        taken.append(item)
    return "".join(taken)


def test_empty_inbox_has_nothing() -> None:
    inbox: Inbox[str] = Inbox()
    inbox.lane(BULK).extend("", 0)
    assert inbox.pop() is None
    assert len(inbox) == 0


def test_a_lane_is_read_in_its_order() -> None:
    inbox: Inbox[str] = Inbox()
    lane = inbox.lane(BULK)
    lane.extend("abc", 3)
    assert inbox.pop() == "a"
    lane.extend("de", 2)
    assert (len(inbox), len(lane)) == (4, 4)
    assert drain(inbox) == "bcde"


def test_control_overtakes_bulk() -> None:
    inbox: Inbox[str] = Inbox()
    bulk, control = inbox.lane(BULK), inbox.lane(CONTROL)
    bulk.extend("bbb", 3)
    assert inbox.pop() == "b"
    control.extend("cc", 2)
    assert drain(inbox) == "ccbb"


def test_lanes_take_turns_however_much_waits_in_one() -> None:
    inbox: Inbox[str] = Inbox()
    lanes = [inbox.lane(BULK) for _ in range(3)]
    for lane, items in zip(lanes, ("aaaaaa", "b", "cc"), strict=True):
        lane.extend(items, len(items))
    assert [inbox.pop() for _ in range(5)] == list("abcac")
    # One that was empty is behind those that wait.
    lanes[1].extend("b", 1)
    assert drain(inbox) == "abaaa"


@pytest.mark.parametrize(("items", "size"), [(LANE_ITEMS // 8, 1), (2, LANE_SIZE // 8)], ids=["items", "bytes"])
def test_full_lane_tells_once_when_it_is_half_empty(items: int, size: int) -> None:
    inbox: Inbox[str] = Inbox()
    lane, other = inbox.lane(BULK), inbox.lane(BULK)
    told: list[int] = []
    lane.on_room = lambda: told.append(len(lane))
    for _ in range(7):
        lane.extend("x" * items, size)
    assert not lane.is_full
    lane.extend("x" * items, size)
    assert lane.is_full
    assert not other.is_full
    for waiting in range(8 * items - 1, -1, -1):
        assert inbox.pop() == "x"
        assert told == ([4 * items] if waiting <= 4 * items else [])
        assert not (told and lane.is_full)


def test_lane_that_never_was_full_tells_nothing() -> None:
    inbox: Inbox[str] = Inbox()
    lane = inbox.lane(BULK)
    lane.on_room = lambda: pytest.fail("nobody waits")
    for _ in range(5):
        lane.extend("x", LANE_SIZE - 1)
        assert drain(inbox) == "x"


def test_lane_may_be_filled_again_from_within_on_room() -> None:
    """The last batch is gone then: the lane must neither be forgotten nor be in the row twice."""
    inbox: Inbox[str] = Inbox()
    lane, other = inbox.lane(BULK), inbox.lane(BULK)
    refills = ["cd"]
    lane.on_room = lambda: lane.extend(refills.pop(), LANE_SIZE)
    lane.extend("ab", LANE_SIZE)
    other.extend("xyz", 3)
    assert [inbox.pop() for _ in range(3)] == list("axb")
    assert not refills
    lane.on_room = None
    assert drain(inbox) == "yczd"


def test_a_full_inbox_tells_once_when_half_of_it_is_read() -> None:
    inbox: Inbox[int] = Inbox(1000 + 10 * ITEM_COST)
    told: list[int] = []
    inbox.on_room = lambda: told.append(inbox.size)
    lanes = [inbox.lane(priority) for priority in (CONTROL, BULK) for _ in range(5)]
    for number, lane in enumerate(lanes):
        assert not inbox.is_full
        lane.extend([number], 100)
    assert inbox.is_full
    left = 10
    while inbox.is_full:
        assert not told
        assert inbox.pop() is not None
        left -= 1
    assert told == [inbox.size] == [left * (100 + ITEM_COST)]
    assert left == 5
    while inbox.pop() is not None:
        pass
    assert inbox.size == 0
    assert len(told) == 1


class Machine(RuleBasedStateMachine):
    """Against one deque for each lane, and the row of lanes that have something."""

    def __init__(self) -> None:
        super().__init__()
        self.inbox: Inbox[tuple[int, int]] = Inbox()
        self.lanes: list[Lane[tuple[int, int]]] = []
        self.waiting: list[deque[tuple[int, int]]] = []
        self.rows: tuple[deque[int], deque[int]] = (deque(), deque())
        self.priorities: list[Priority] = []
        self.full: set[int] = set()
        self.added = 0
        self.run = 0

    @rule(priority=st.sampled_from(Priority))
    def lane(self, priority: Priority) -> None:
        number = len(self.lanes)
        lane = self.inbox.lane(priority)
        lane.on_room = lambda: self.full.remove(number)
        self.lanes.append(lane)
        self.waiting.append(deque())
        self.priorities.append(priority)

    @rule(pick=st.integers(0, 100), count=st.sampled_from([0, 1, 3, 2000]), size=st.sampled_from([1, LANE_SIZE // 3]))
    def extend(self, pick: int, count: int, size: int) -> None:
        if not self.lanes or pick % len(self.lanes) in self.full:
            return
        number = pick % len(self.lanes)
        items = [(number, self.added + index) for index in range(count)]
        self.added += count
        if items and not self.waiting[number]:
            self.rows[self.priorities[number]].append(number)
        self.waiting[number].extend(items)
        self.lanes[number].extend(items, size)
        if self.lanes[number].is_full:
            self.full.add(number)

    @rule(count=st.sampled_from([1, 2, 5, 1500]))
    def pop(self, count: int) -> None:
        for _ in range(count):
            control, bulk = self.rows
            # One bulk item behind every run of control ones.
            row = control or bulk
            self.run = self.run + 1 if control and bulk else 0
            if self.run > CONTROL_RUN:
                row, self.run = bulk, 0
            expected = None
            if row:
                number = row.popleft()
                expected = self.waiting[number].popleft()
                if self.waiting[number]:
                    row.append(number)
            assert self.inbox.pop() == expected

    @invariant()
    def bounds_hold(self) -> None:
        assert len(self.inbox) == sum(map(len, self.waiting))
        assert bool(self.inbox.size) == bool(len(self.inbox))
        for number, lane in enumerate(self.lanes):
            assert len(lane) == len(self.waiting[number]) < LANE_ITEMS + 2000
            # A lane that is full has something to be read, or nobody would ever tell of room.
            assert len(lane) or (number not in self.full and not lane.is_full)

    def teardown(self) -> None:
        self.pop(sum(map(len, self.waiting)) + 1)
        assert not self.full


def test_who_calls_all_of_its_own_urgent_does_not_silence_the_others() -> None:
    inbox: Inbox[str] = Inbox()
    inbox.lane(CONTROL).extend("c" * 100, 100)
    inbox.lane(BULK).extend("b" * 5, 5)
    assert drain(inbox) == ("c" * CONTROL_RUN + "b") * 5 + "c" * (100 - 5 * CONTROL_RUN)


def test_any_order_of_adding_and_taking_is_fair_and_bounded() -> None:
    run_state_machine_as_test(Machine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))
