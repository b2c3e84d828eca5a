"""What one neighbour is owed: each frame is in one place, leaves in its turn, and comes back once or never."""

from collections import Counter
from math import inf

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from overlay.protocol.driver.outbox import BATCH, LOOK_EVERY, UNDER_WAY, Outbox, Reason, Returned
from overlay.protocol.driver.wire import Greeting, LaneReader, decode_datagram
from overlay.protocol.stream import Priority

CONTROL, BULK = Priority.CONTROL, Priority.BULK
GREETING = Greeting(9_000, 3).encode()
FRAMES, SIZE = 12, 8_000
ROOM = 100_000
explored: Counter[str] = Counter()


def outbox(*, frames: int = FRAMES, size: int = SIZE, greeted: bool = True) -> Outbox:
    """One whose greetings are pulled."""
    box = Outbox(frames=frames, size=size, greeting=GREETING)
    assert [box.pull(priority, ROOM, 0.0) for priority in Priority] == [GREETING, GREETING]
    if greeted:
        box.greeted(9_000)
    return box


def put(box: Outbox, *frames: bytes, priority: Priority = BULK, reliable: bool = True, deadline: float = 30.0) -> bool:
    return all(box.put(frame, priority=priority, reliable=reliable, deadline=deadline) for frame in frames)


def test_nothing_but_the_greeting_leaves_before_the_neighbours_has_come() -> None:
    box = Outbox(frames=FRAMES, size=SIZE, greeting=GREETING)
    assert put(box, b"a")
    assert put(box, b"b", reliable=False)
    assert box.has_lane_work(BULK)
    assert box.pull(BULK, ROOM, 0.0) == GREETING
    assert not box.has_lane_work(BULK)
    assert not box.has_datagram_work
    assert box.pull(BULK, ROOM, 0.0) == b""
    assert box.pull_datagram(ROOM, 0.0) is None
    box.greeted(10)
    assert box.has_lane_work(BULK)
    assert box.has_datagram_work
    assert box.pull(BULK, ROOM, 0.0) == b"\x01a"
    assert box.pull_datagram(ROOM, 0.0) == b"\x01b"


def test_greeting_goes_before_frames_and_counts_as_room() -> None:
    box = Outbox(frames=FRAMES, size=SIZE, greeting=GREETING)
    box.greeted(10)
    put(box, b"a", b"b")
    assert box.pull(BULK, len(GREETING), 0.0) == GREETING
    assert box.unacknowledged_size == 0
    assert box.pull(CONTROL, 1, 0.0) == GREETING
    assert box.pull(BULK, 1, 0.0) == b"\x01a"
    assert box.delivered(BULK, len(GREETING) + 1) == 0
    assert box.delivered(BULK, len(GREETING) + 2) == 1


def test_pull_ends_with_the_frame_that_passes_its_room() -> None:
    box = outbox()
    put(box, b"a", b"bbbb", b"c")
    assert box.pull(BULK, 3, 0.0) == b"\x01a\x04bbbb"
    assert box.pull(BULK, 2, 0.0) == b"\x01c"
    assert box.pull(BULK, 2, 0.0) == b""


def test_pull_has_so_many_frames_and_no_more() -> None:
    box = outbox(frames=2 * BATCH)
    put(box, *[b"x"] * (BATCH + 1))
    assert box.pull(BULK, ROOM, 0.0) == b"\x01x" * BATCH
    assert box.pull(BULK, ROOM, 0.0) == b"\x01x"


def test_frames_without_bytes_are_bounded_on_their_way_too() -> None:
    box = outbox(frames=UNDER_WAY + 1)
    assert put(box, *[b""] * (UNDER_WAY + 1))
    pulled = 0
    while box.has_lane_work(BULK):
        pulled += len(box.pull(BULK, ROOM, 0.0))
    assert pulled == UNDER_WAY
    assert box.pull(BULK, ROOM, 0.0) == b""
    assert box.queued_frames == 1
    box.delivered(BULK, len(GREETING) + 1)
    assert box.has_lane_work(BULK)
    assert box.pull(BULK, ROOM, 0.0) == b"\x00"


@pytest.mark.parametrize("reliable", [True, False])
def test_full_bulk_never_refuses_control(reliable: bool) -> None:
    box = outbox()
    assert put(box, *[b"b"] * FRAMES, reliable=reliable)
    assert box.is_full(BULK)
    assert not put(box, b"b")
    assert not put(box, b"b", reliable=False)
    assert not box.is_full(CONTROL)
    assert put(box, b"c" * SIZE, priority=CONTROL)
    assert not box.is_full(CONTROL)
    assert box.is_full(CONTROL, 1)
    assert not put(box, b"c", priority=CONTROL)
    assert box.take_returned() == []
    assert (box.queued_frames, box.queued_size) == (FRAMES + 1, FRAMES + SIZE)


def test_queue_is_busy_when_more_than_half_of_it_is_taken() -> None:
    box = outbox()
    put(box, *[b"b"] * (FRAMES // 2 - 1))
    put(box, b"u", reliable=False)
    assert not box.is_busy(BULK)
    put(box, b"b")
    assert box.is_busy(BULK)
    put(box, b"c" * (SIZE // 2), priority=CONTROL)
    assert not box.is_busy(CONTROL)
    put(box, b"c", priority=CONTROL)
    assert box.is_busy(CONTROL)
    box.pull(CONTROL, 1, 0.0)
    assert not box.is_busy(CONTROL)


def test_what_has_left_makes_room() -> None:
    box = outbox()
    put(box, b"b" * SIZE)
    assert box.is_full(BULK, 1)
    box.pull(BULK, 1, 0.0)
    assert put(box, b"b" * SIZE)
    assert (box.queued_size, box.unacknowledged_size) == (SIZE, SIZE)


def test_frame_longer_than_the_neighbour_takes_comes_back_at_once() -> None:
    box = outbox(greeted=False)
    put(box, b"long", b"ok", b"longer", priority=CONTROL)
    put(box, b"large", reliable=False)
    box.greeted(3)
    frames = [b"long", b"longer", b"large"]
    assert box.take_returned() == [Returned(frame, Reason.TOO_LONG, maybe_delivered=False) for frame in frames]
    assert (box.queued_frames, box.queued_size) == (1, 2)
    assert put(box, b"late")
    assert box.take_returned() == [Returned(b"late", Reason.TOO_LONG, maybe_delivered=False)]
    assert box.pull(CONTROL, ROOM, 0.0) == b"\x02ok"


def test_two_greetings_hold_both() -> None:
    """Each lane has one; a neighbour that contradicts itself gets what it takes in any case."""
    box = outbox()
    box.greeted(3)
    box.greeted(10)
    assert put(box, b"long")
    assert [one.frame for one in box.take_returned()] == [b"long"]


def test_datagrams_control_first_and_those_too_long_by_the_lane() -> None:
    box = outbox()
    put(box, b"bulk", b"too long", b"b", reliable=False)
    put(box, b"control", priority=CONTROL, reliable=False)
    put(box, b"first")
    assert box.pull_datagram(8, 0.0) == b"\x00control"
    assert box.pull_datagram(8, 0.0) == b"\x01bulk"
    assert box.pull_datagram(8, 0.0) == b"\x01b"
    assert not box.has_datagram_work
    assert box.pull_datagram(8, 0.0) is None
    assert box.queued_frames == 2
    assert box.pull(BULK, ROOM, 0.0) == b"\x05first\x08too long"
    box.end(Reason.SESSION_OVER)
    assert box.take_returned() == [Returned(b"first", Reason.SESSION_OVER, maybe_delivered=True)]


def test_unreliable_frame_comes_back_if_it_was_never_sent() -> None:
    box = outbox()
    put(box, b"one", b"two", b"late", reliable=False)
    put(box, b"old", reliable=False, deadline=5.0)
    assert box.pull_datagram(100, 0.0) == b"\x01one"
    box.expire(5.0)
    assert box.take_returned() == [Returned(b"old", Reason.EXPIRED, maybe_delivered=False)]
    assert box.pull_datagram(0, 5.0) is None
    assert box.pull(BULK, 1, 5.0) == b"\x03two"
    put(box, b"new", reliable=False)
    box.end(Reason.STOPPED)
    frames = [b"late", b"new"]
    assert box.take_returned() == [Returned(frame, Reason.STOPPED, maybe_delivered=False) for frame in frames]


def test_frame_past_its_deadline_is_never_sent() -> None:
    """Whether `expire` was called or not."""
    box = outbox()
    put(box, b"old", deadline=5.0)
    put(box, b"lost", reliable=False, deadline=5.0)
    put(box, b"young", deadline=5.1)
    assert box.pull(BULK, ROOM, 5.0) == b"\x05young"
    assert box.pull_datagram(100, 5.0) is None
    assert [one.frame for one in box.take_returned()] == [b"old", b"lost"]
    assert box.queued_size == 0


def test_ages_are_looked_at_when_the_earliest_is_over_and_then_not_for_a_while() -> None:
    box = outbox()
    assert box.next_timeout() is None
    put(box, b"never", deadline=inf)
    assert box.next_timeout() is None
    put(box, b"second", deadline=5.01)
    put(box, b"first", deadline=5.0)
    put(box, b"third", deadline=7.0)
    assert box.next_timeout() == 5.0
    box.expire(4.9)
    assert box.take_returned() == []
    box.expire(5.0)
    assert [one.frame for one in box.take_returned()] == [b"first"]
    assert box.next_timeout() == pytest.approx(5.0 + LOOK_EVERY)
    box.expire(5.05)
    assert box.take_returned() == []
    box.expire(5.0 + LOOK_EVERY)
    assert [one.frame for one in box.take_returned()] == [b"second"]
    assert box.next_timeout() == 7.0


def test_what_is_too_long_on_its_way_comes_back_and_its_acknowledgement_is_no_news() -> None:
    box = outbox()
    put(box, b"old", deadline=5.0)
    put(box, b"young!")
    put(box, b"older", deadline=4.0)
    box.pull(BULK, ROOM, 0.0)
    box.expire(5.0)
    assert box.take_returned() == [
        Returned(frame, Reason.EXPIRED, maybe_delivered=True) for frame in (b"old", b"older")
    ]
    assert box.unacknowledged_size == 6
    assert box.delivered(BULK, len(GREETING) + 17) == 6
    assert box.delivered(BULK, len(GREETING) + 17) == 0
    box.end(Reason.CLOSED)
    assert box.take_returned() == []


def test_after_the_end_nothing_is_left_and_nothing_is_taken() -> None:
    box = Outbox(frames=FRAMES, size=SIZE, greeting=GREETING)
    put(box, b"a")
    box.end(Reason.NO_DRIVER)
    assert box.take_returned() == [Returned(b"a", Reason.NO_DRIVER, maybe_delivered=False)]
    box.greeted(100)
    assert put(box, b"")
    assert box.take_returned() == [Returned(b"", Reason.NO_DRIVER, maybe_delivered=False)]
    assert not any(box.has_lane_work(priority) for priority in Priority)
    assert box.pull(BULK, ROOM, 0.0) == b""
    assert box.next_timeout() is None
    box.end(Reason.CLOSED)
    assert box.take_returned() == []


class Frame:
    """A frame as the model knows it; exactly one place at any time."""

    def __init__(self, data: bytes, priority: Priority, *, reliable: bool, deadline: float) -> None:
        self.data = data
        self.priority = priority
        self.reliable = reliable
        self.deadline = deadline
        self.place = "waiting" if reliable else "datagram"
        self.wire_size = len(data) + (1 if len(data) < 64 else 2)
        self.end = 0
        """Offset in the lane behind it, once it has left."""


class Machine(RuleBasedStateMachine):
    """The model keeps all frames in one list, and looks through all of them each time."""

    @initialize(longest=st.sampled_from([None, 10_000, 10_000, 10_000]))
    def begin(self, longest: int | None) -> None:
        self.box = Outbox(frames=FRAMES, size=SIZE, greeting=GREETING)
        self.frames: dict[bytes, Frame] = {}
        self.orders: dict[Priority, list[Frame]] = {priority: [] for priority in Priority}
        """What waits for a lane, in its order."""
        self.readers = {priority: LaneReader(10_000) for priority in Priority}
        self.pulled = dict.fromkeys(Priority, 0)
        self.acked = dict.fromkeys(Priority, 0)
        self.now = 100.0
        self.looked = -inf
        self.is_greeted = False
        self.longest = inf
        self.ended: Reason | None = None
        if longest is not None:
            self.take_greeting(longest)

    def at(self, *places: str, priority: Priority | None = None) -> list[Frame]:
        return [
            frame
            for frame in self.frames.values()
            if frame.place in places and (priority is None or frame.priority is priority)
        ]

    def move(self, frame: Frame, place: str) -> None:
        assert frame.place in {"waiting", "datagram", "under way"}, f"{frame.place} is the end"
        if frame.place == "waiting":
            self.orders[frame.priority].remove(frame)
        if place == "waiting":
            self.orders[frame.priority].append(frame)
        frame.place = place
        explored[place] += 1

    def take_returned(self, *reasons: Reason) -> None:
        """Check what has come back; only these reasons may be given, and only where they hold."""
        for frame, reason, maybe_delivered in self.box.take_returned():
            one = self.frames[frame]
            assert reason in reasons
            assert reason is not Reason.EXPIRED or one.deadline <= self.now
            assert reason is not Reason.TOO_LONG or len(frame) > self.longest
            assert maybe_delivered == (one.place == "under way")
            assert one.reliable or not maybe_delivered
            self.move(one, "returned")
            explored[reason.name] += 1

    @rule(
        size=st.sampled_from([3, 60, 70, 700, 3000]),
        priority=st.sampled_from(Priority),
        reliable=st.booleans(),
        age=st.sampled_from([0.0, 0.1, 1.0, 30.0, 30.0, inf]),
        count=st.sampled_from([1, 2, 3, 3, FRAMES + 1]),
    )
    def put(self, size: int, priority: Priority, reliable: bool, age: float, count: int) -> None:
        for _ in range(count):
            data = len(self.frames).to_bytes(3, "big") + b"." * (size - 3)
            waiting = self.at("waiting", "datagram", priority=priority)
            has_room = len(waiting) < FRAMES and sum(len(frame.data) for frame in waiting) + size <= SIZE
            assert has_room == (not self.box.is_full(priority, size))
            accepted = self.box.put(data, priority=priority, reliable=reliable, deadline=self.now + age)
            refusal = self.ended or (Reason.TOO_LONG if size > self.longest else None)
            assert accepted == (has_room or refusal is not None)
            if not accepted:
                explored["full"] += 1
                continue
            frame = Frame(data, priority, reliable=reliable, deadline=self.now + age)
            self.frames[data] = frame
            if frame.place == "waiting":
                self.orders[priority].append(frame)
            if refusal is not None:
                self.take_returned(refusal)
                assert frame.place == "returned"

    def take_greeting(self, longest: int) -> None:
        self.box.greeted(longest)
        self.is_greeted = True
        if self.ended is None:
            self.longest = min(longest, self.longest)
        self.take_returned(Reason.TOO_LONG)
        assert all(len(frame.data) <= self.longest for frame in self.at("waiting", "datagram"))

    @precondition(lambda self: not self.is_greeted)
    @rule(longest=st.sampled_from([69, 1000, 10_000]))
    def greeted(self, longest: int) -> None:
        self.take_greeting(longest)

    @rule(longest=st.sampled_from([69, 1000, 10_000]), chance=st.integers(0, 19))
    def greeted_again(self, longest: int, chance: int) -> None:
        """By the other lane, which may say something else."""
        if chance == 7:
            self.take_greeting(longest)

    @rule(priority=st.sampled_from(Priority), room=st.sampled_from([1, 100, 2000, ROOM]))
    def pull(self, priority: Priority, room: int) -> None:
        order = self.orders[priority]
        reader = self.readers[priority]
        greeting_due = not self.pulled[priority] and self.ended is None
        data = self.box.pull(priority, room, self.now)
        frames = [self.frames[frame] for frame in reader.receive(data)]
        assert frames == [frame for frame in order if frame.deadline > self.now][: len(frames)]
        assert self.is_greeted or not frames
        if greeting_due:
            assert data.startswith(GREETING)
            self.pulled[priority] = len(GREETING)
            room -= len(GREETING)
        for frame in frames:
            # Only the last one may pass the room, and its first byte does not.
            assert room > 0
            room -= frame.wire_size
            self.pulled[priority] += frame.wire_size
            frame.end = self.pulled[priority]
            self.move(frame, "under way")
        self.take_returned(Reason.EXPIRED)
        assert room <= 0 or not self.is_greeted or not order

    @rule(limit=st.sampled_from([0, 65, 1200]))
    def pull_datagram(self, limit: int) -> None:
        data = self.box.pull_datagram(limit, self.now)
        self.take_returned(Reason.EXPIRED)
        expected = None
        for frame in sorted(self.at("datagram"), key=lambda frame: frame.priority) if self.is_greeted else ():
            assert frame.deadline > self.now or expected is not None
            if len(frame.data) + 1 <= limit:
                expected = expected or frame
            elif expected is None:
                self.move(frame, "waiting")
        if data is None:
            assert expected is None
            return
        assert expected is not None
        assert decode_datagram(data) == (expected.priority, expected.data)
        self.move(expected, "sent")

    @rule(priority=st.sampled_from(Priority), part=st.floats(0, 1))
    def delivered(self, priority: Priority, part: float) -> None:
        acked = self.acked[priority]
        acked += int((self.pulled[priority] - acked) * part + 0.5)
        self.acked[priority] = acked
        news = [frame for frame in self.at("under way", priority=priority) if frame.end <= acked]
        assert self.box.delivered(priority, acked) == sum(len(frame.data) for frame in news)
        for frame in news:
            self.move(frame, "acknowledged")
        self.take_returned()

    @rule(seconds=st.sampled_from([0.01, 0.05, 0.2, 1.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        timeout = self.box.next_timeout()
        self.box.expire(self.now)
        if timeout is None or self.now < timeout:
            self.take_returned()
            return
        self.looked = self.now
        for frame in self.at("under way"):
            if frame.deadline <= self.now and not frame.reliable:
                self.move(frame, "forgotten")
        self.take_returned(Reason.EXPIRED)
        assert all(frame.deadline > self.now for frame in self.at("waiting", "datagram", "under way"))

    @rule(reason=st.sampled_from([Reason.SESSION_OVER, Reason.STOPPED]), chance=st.integers(0, 24))
    def end(self, reason: Reason, chance: int) -> None:
        if chance != 7:
            return
        self.box.end(reason)
        self.ended = reason
        for frame in self.at("under way"):
            if not frame.reliable:
                self.move(frame, "forgotten")
        self.take_returned(reason)
        assert not self.at("waiting", "datagram", "under way")

    @invariant()
    def sums_are_right_and_bounds_hold(self) -> None:
        box = self.box
        waiting = self.at("waiting", "datagram")
        assert box.queued_frames == len(waiting)
        assert box.queued_size == sum(len(frame.data) for frame in waiting)
        assert box.unacknowledged_size == sum(len(frame.data) for frame in self.at("under way"))
        for priority in Priority:
            here = [frame for frame in waiting if frame.priority is priority]
            assert len(here) <= FRAMES
            assert sum(len(frame.data) for frame in here) <= SIZE
            assert box.is_full(priority) == (len(here) == FRAMES)
            has_greeting = not self.pulled[priority] and self.ended is None
            assert box.has_lane_work(priority) == (has_greeting or (self.is_greeted and bool(self.orders[priority])))
        assert box.has_datagram_work == (self.is_greeted and bool(self.at("datagram")))
        earliest = min((frame.deadline for frame in self.at("waiting", "datagram", "under way")), default=inf)
        timeout = box.next_timeout()
        assert earliest == inf if timeout is None else timeout <= max(earliest, self.looked + LOOK_EVERY)

    def teardown(self) -> None:
        """Nothing waits for ever: whatever has a deadline is gone at the latest after the last one."""
        self.now += 100.0
        self.expire()
        assert all(frame.deadline == inf for frame in self.at("waiting", "datagram", "under way"))


def test_each_frame_waits_or_is_under_way_or_acknowledged_or_came_back() -> None:
    """Against a simple model; and what happened is not trivial."""
    explored.clear()
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=500,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    for what in ("full", "under way", "acknowledged", "sent", "waiting", "forgotten", "EXPIRED", "TOO_LONG", "STOPPED"):
        assert explored[what] >= 20, explored
