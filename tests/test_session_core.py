"""Two session cores and nothing else: credit, ends, budgets, order, and what a hostile peer may try."""

import pytest
from pairs import LIMITS, check_empty, check_session

from overlay.protocol.budget import Budget, SessionLimits
from overlay.protocol.codes import CloseCode, StreamCode
from overlay.protocol.frames import (
    VARINT_MAX,
    Fin,
    FrameReader,
    Gone,
    ProtocolViolation,
    Reset,
    Stop,
    StreamData,
    Streams,
    Window,
)
from overlay.protocol.outgoing import CHUNK
from overlay.protocol.session import SessionCore, SessionFrame
from overlay.protocol.stream import Ending, Priority, StreamCore


def make(*, even: bool, limits: SessionLimits = LIMITS[0], pool: Budget | None = None) -> SessionCore:
    budget = Budget(1 << 20, pool)
    assert budget.reserve(limits.streams * limits.window)
    return SessionCore(even=even, limits=limits, budget=budget)


class Pair:
    """Two of them; `move` carries all that one has to say to the other."""

    def __init__(self, limits: SessionLimits = LIMITS[0]) -> None:
        self.one = make(even=True, limits=limits)
        self.two = make(even=False, limits=limits)
        self.now = 0.0

    def move(self, source: SessionCore, target: SessionCore, *, carrier: int = 1) -> int:
        """How many events were carried."""
        events = FrameReader(stream_data=True).receive_data(b"".join(source.control_to_send(carrier)))
        for event in events:
            target.receive_frame(event, self.now)  # type: ignore[arg-type]
        count = len(events)
        while chunk := source.data_to_send(carrier, 1 << 20):
            target.receive_stream(chunk.stream, chunk.offset, bytes(chunk.data), self.now)
            count += 1
        return count

    def settle(self) -> None:
        for _ in range(1000):
            self.now += 0.1
            self.one.handle_timeout(self.now)
            self.two.handle_timeout(self.now)
            moved = self.move(self.one, self.two) + self.move(self.two, self.one)
            check_session(self.one)
            check_session(self.two)
            if not moved:
                return
        raise AssertionError("they never come to rest")

    def stream(self) -> tuple[StreamCore, StreamCore]:
        """One that `one` has opened, as both see it."""
        stream = self.one.open("test")
        assert stream is not None
        self.settle()
        return stream, self.two.streams[stream.id]


def violates(core: SessionCore, code: CloseCode, frame: SessionFrame | StreamData) -> None:
    with pytest.raises(ProtocolViolation) as caught:
        if isinstance(frame, StreamData):
            core.receive_stream(frame.stream, frame.offset, frame.data, 0.0)
        else:
            core.receive_frame(frame, 0.0)
    assert caught.value.code is code


def test_stream_there_and_back_leaves_nothing() -> None:
    pair = Pair()
    here, there = pair.stream()
    assert pair.two.take_opened() == [there]
    assert (there.protocol, there.priority) == ("test", Priority.BULK)
    assert pair.one.write(here, b"ping") == 4
    pair.one.finish(here)
    pair.settle()
    assert pair.two.read(there, 100) == b"ping"
    assert there.receiving.complete
    pair.two.write(there, b"pong")
    pair.two.finish(there)
    pair.settle()
    assert pair.one.read(here, 100) == b"pong"
    pair.settle()
    check_empty(pair.one)
    check_empty(pair.two)


def test_fin_that_overtakes_its_data_does_not_stop_the_credit() -> None:
    """FIN is a control frame: it arrives first, and the window has to open nevertheless."""
    pair = Pair()
    here, there = pair.stream()
    assert pair.one.write(here, bytes(8000)) == 8000
    pair.one.finish(here)
    pair.settle()
    total = 0
    while data := pair.two.read(there, 5000):
        total += len(data)
        pair.settle()
    assert total == 8000
    assert there.receiving.complete


def test_reader_that_stops_reading_bounds_the_writer() -> None:
    pair = Pair()
    here, there = pair.stream()
    written = 0
    for _ in range(50):
        written += pair.one.write(here, bytes(5000))
        pair.settle()
    assert written <= LIMITS[0].window + LIMITS[0].stream_send_buffer
    assert here.sending.blocked
    pair.one.take_changed()
    while pair.two.read(there, 1 << 20):
        pair.settle()
    assert here in pair.one.take_changed()


def test_bytes_over_all_streams_are_bounded_and_every_writer_is_woken() -> None:
    pair = Pair()
    streams = [stream for _ in range(8) if (stream := pair.one.open("test"))]
    pair.settle()
    for stream in streams:
        pair.one.write(stream, bytes(9000))
    assert pair.one._outgoing.buffered <= LIMITS[0].session_send_buffer + 6 * len(streams)
    blocked = {stream for stream in streams if stream.sending.blocked}
    assert blocked
    woken: set[StreamCore] = set()
    for _ in range(40):
        pair.settle()
        for stream in list(pair.two.streams.values()):
            pair.two.read(stream, 9000)
        woken |= set(pair.one.take_changed())
    assert blocked <= woken
    assert not pair.one._outgoing._blocked


def test_control_priority_goes_first_and_bulk_takes_turns() -> None:
    core = make(even=True, limits=SessionLimits(stream_send_buffer=1 << 20))
    core.peer_granted(100, 1 << 20)
    streams = [core.open("test", priority) for priority in (Priority.BULK, Priority.BULK, Priority.CONTROL)]
    for stream in streams:
        assert stream is not None
        core.write(stream, bytes(2 * CHUNK))
    order = []
    while chunk := core.data_to_send(1, 1 << 20):
        assert len(chunk.data) <= CHUNK
        order.append(chunk.stream)
    turns = [number for number in order if number != 4]
    assert order[: order.count(4)] == [4] * order.count(4)
    assert turns[:4] == [0, 2, 0, 2]


def test_opening_waits_for_credit_and_learns_of_it() -> None:
    pair = Pair()
    opened = [stream for _ in range(40) if (stream := pair.one.open("test"))]
    assert len(opened) == LIMITS[0].streams
    pair.settle()
    assert pair.one.may_open
    assert pair.one.open("test") is not None


def test_thousand_streams_in_a_row_leave_no_state() -> None:
    pair = Pair()
    for _ in range(1000):
        stream = pair.one.open("test")
        assert stream is not None
        pair.one.finish(stream)
        pair.move(pair.one, pair.two)
        for other in pair.two.take_opened():
            pair.two.finish(other)
        pair.now += 1
        pair.settle()
    check_empty(pair.one)
    check_empty(pair.two)


def test_session_keeps_its_share_when_others_take_all_the_memory() -> None:
    """What was reserved at the start stays: without that, nobody could open a stream here ever again."""
    pair = Pair()
    pool = Budget(100_000)
    pair.two = make(even=False, pool=pool)
    streams = [stream for _ in range(16) if (stream := pair.one.open("test"))]
    pair.move(pair.one, pair.two)
    assert pool.reserve(pool.limit - pool.used)
    for _ in range(5):
        for stream in streams:
            pair.one.finish(stream)
        pair.settle()
        for other in list(pair.two.streams.values()):
            pair.two.finish(other)
        pair.settle()
        pool.reserve(pool.limit - pool.used)
        streams = [stream for _ in range(16) if (stream := pair.one.open("test"))]
        assert streams


def test_name_that_comes_byte_by_byte_is_read_once_it_is_there() -> None:
    core = make(even=False)
    for offset, byte in enumerate(b"\x00\x04test!"):
        core.receive_stream(0, offset, bytes([byte]), 0.0)
    [stream] = core.take_opened()
    assert (stream.protocol, stream.priority, core.read(stream, 9)) == ("test", Priority.CONTROL, b"!")


@pytest.mark.parametrize("head", [b"\x01\x00", b"\x01\x02\xff\xff"])
def test_misnamed_stream_is_refused(head: bytes) -> None:
    core = make(even=False)
    core.receive_stream(0, 0, head, 0.0)
    assert core.take_opened() == []
    stream = core.streams[0]
    assert (stream.sending.code, stream.receiving.stopped) == (StreamCode.UNKNOWN_PROTOCOL,) * 2


def test_reset_of_a_stream_that_never_said_its_name_closes_it() -> None:
    pair = Pair()
    stream = pair.one.open("test")
    assert stream is not None
    pair.one.reset(stream, 5)
    pair.settle()
    check_empty(pair.one)
    check_empty(pair.two)


def test_stop_makes_the_writer_reset() -> None:
    pair = Pair()
    here, there = pair.stream()
    pair.one.write(here, bytes(3000))
    pair.two.stop(there, 7)
    pair.settle()
    assert (here.sending.stopped, here.sending.ending, there.receiving.complete) == (7, Ending.RESET, True)
    with pytest.raises(ValueError, match="ended"):
        pair.one.write(here, b"more")


def test_gone_is_idempotent_and_answers_whatever_comes_for_a_closed_stream() -> None:
    pair = Pair()
    here, there = pair.stream()
    pair.one.finish(here)
    pair.two.finish(there)
    pair.settle()
    check_empty(pair.two)
    frames: list[SessionFrame] = [Window(0, 1, 9), Fin(0, 6), Reset(0, 6, 1), Stop(0, 1)]
    for frame in frames:
        pair.two.receive_frame(frame, 0.0)
    pair.two.receive_stream(0, 0, b"late", 0.0)
    assert FrameReader(stream_data=False).receive_data(b"".join(pair.two.control_to_send(1))) == [Gone(0)]
    for _ in range(3):
        pair.one.receive_frame(Gone(0), 0.0)
        pair.two.receive_frame(Gone(0), 0.0)
    assert not pair.one.has_control


def test_last_acknowledgement_lost_with_its_connection_is_asked_for_again() -> None:
    pair = Pair()
    here, there = pair.stream()
    pair.two.finish(there)
    pair.settle()
    pair.one.finish(here)
    pair.move(pair.one, pair.two)
    pair.two.control_to_send(1)  # the acknowledgement, lost
    assert here.id in pair.one.streams
    assert here.id not in pair.two.streams
    pair.one.forsake(1, wait=True)
    pair.one.repeat_state()
    pair.settle()
    check_empty(pair.one)


def test_loss_of_a_connection_sends_what_it_carried_and_nothing_else() -> None:
    core = make(even=True)
    core.peer_granted(100, 100_000)
    stream = core.open("test")
    assert stream is not None
    core.write(stream, bytes(1000))
    assert core.data_to_send(1, 500) is not None
    assert core.data_to_send(2, 1000) is not None
    core.receive_frame(Window(0, 500, 100_000), 0.0)
    assert not core.in_flight(1)
    assert core.in_flight(2)
    core.forsake(1, wait=False)
    assert core.data_to_send(3, 1000) is None
    core.forsake(2, wait=True)
    assert core.data_to_send(3, 1000) is None
    core.streams = {}
    core.resume()  # only those that wait, however many streams there are
    chunk = core.data_to_send(3, 1000)
    assert chunk is not None
    assert (chunk.offset, len(chunk.data), chunk.idle) == (500, 506, True)


@pytest.mark.parametrize(
    ("code", "frame"),
    [
        (CloseCode.STREAM_ID_ERROR, StreamData(2 * 16, 0, b"x")),
        (CloseCode.STREAM_ID_ERROR, StreamData(1, 0, b"x")),
        (CloseCode.STREAM_ID_ERROR, Window(3, 0, 0)),
        (CloseCode.STREAM_ID_ERROR, Gone(1)),
        (CloseCode.STREAM_ID_ERROR, Gone(2)),
        (CloseCode.STREAM_ID_ERROR, Stop(VARINT_MAX, 0)),
        (CloseCode.FLOW_CONTROL_ERROR, StreamData(0, 4096, b"x")),
        (CloseCode.FLOW_CONTROL_ERROR, StreamData(0, VARINT_MAX, b"x")),
        (CloseCode.FLOW_CONTROL_ERROR, Window(0, 1, 0)),
        (CloseCode.FINAL_SIZE_ERROR, Fin(0, 5)),
        (CloseCode.FINAL_SIZE_ERROR, Fin(0, VARINT_MAX)),
        (CloseCode.STATE_ERROR, Gone(0)),
    ],
)
def test_violation_has_its_code(code: CloseCode, frame: SessionFrame | StreamData) -> None:
    core = make(even=False)
    core.receive_stream(0, 0, b"\x01\x04test", 0.0)
    violates(core, code, frame)
    check_session(core)


def test_largest_reset_leaves_a_session_that_can_speak() -> None:
    core = make(even=False)
    core.receive_frame(Reset(0, VARINT_MAX - 1, VARINT_MAX), 0.0)
    core.handle_timeout(1.0)
    assert core.control_to_send(1)


def test_opening_one_opens_all_below_it_within_the_credit() -> None:
    core = make(even=False)
    core.receive_stream(2 * 5, 0, b"\x01\x04test", 0.0)
    assert sorted(core.streams) == [0, 2, 4, 6, 8, 10]
    check_session(core)


def test_codes_that_do_not_fit_are_refused_at_once() -> None:
    core = make(even=True)
    stream = core.open("test")
    assert stream is not None
    for code in (-1, 2**62):
        with pytest.raises(ValueError, match="code"):
            core.reset(stream, code)
        with pytest.raises(ValueError, match="code"):
            core.stop(stream, code)


def test_close_gives_all_memory_back_and_leaves_what_arrived_readable() -> None:
    pool = Budget(1 << 20)
    core = make(even=False, pool=pool)
    core.receive_stream(0, 0, b"\x01\x04testdata", 0.0)
    [stream] = core.take_opened()
    core.close()
    assert pool.used == 0
    assert stream in core.take_changed()
    assert core.read(stream, 10) == b"data"
    core.finish(stream)
    core.reset(stream, 1)
    core.stop(stream, 1)
    assert not core.has_control
    assert core.next_timeout() is None


def test_window_grows_with_a_reader_that_keeps_up() -> None:
    pair = Pair()
    here, there = pair.stream()
    for _ in range(30):
        pair.one.write(here, bytes(8000))
        pair.settle()
        pair.two.read(there, 1 << 20)
    assert there.receiving.window == LIMITS[0].stream_window


def test_streams_credit_never_shrinks() -> None:
    core = make(even=True)
    core.receive_frame(Streams(40), 0.0)
    core.receive_frame(Streams(17), 0.0)
    assert core.granted[0] == 40
