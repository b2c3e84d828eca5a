"""Streams whose bytes are asked for when they can leave; what connections may do to them is the state machine's."""

from dataclasses import dataclass, field

import pytest
from test_session_core import Pair

from overlay.protocol.budget import SessionLimits
from overlay.protocol.frames import MINIMUM_WINDOW
from overlay.protocol.outgoing import CHUNK
from overlay.protocol.session import SessionCore
from overlay.protocol.stream import Priority, StreamCore

NAME = len("test") + 2
"""Bytes of the name that a stream opens with."""


@dataclass
class Source:
    """Gives what is in `stock`, in whole pieces, and notes what it was asked for."""

    stock: list[bytes] = field(default_factory=list)
    rooms: list[int] = field(default_factory=list)

    def __call__(self, room: int) -> bytes:
        self.rooms.append(room)
        taken = b""
        while self.stock and len(taken) < room:
            taken += self.stock.pop(0)
        return taken


def supplied(core: SessionCore, *stock: bytes, priority: Priority = Priority.BULK) -> tuple[StreamCore, Source]:
    """A new stream whose name has left, with a source."""
    stream = core.open("test", priority)
    assert stream is not None
    chunk = core.data_to_send(1, 1 << 20)
    assert chunk is not None
    source = Source(list(stock))
    core.supply(stream, source)
    return stream, source


def test_a_source_is_asked_only_when_its_bytes_leave() -> None:
    core = Pair().one
    stream, source = supplied(core, b"one", b"two")
    assert not source.rooms
    chunk = core.data_to_send(1, 4)
    assert chunk is not None
    assert (chunk.offset, bytes(chunk.data)) == (NAME, b"onet")
    assert source.rooms == [4]
    assert stream.sending.bytes_sent == 4
    # The surplus waits in the stream, and goes before the source is asked again.
    chunk = core.data_to_send(1, 100)
    assert chunk is not None
    assert bytes(chunk.data) == b"wo"
    assert source.rooms == [4]


def test_b_nothing_means_not_to_be_asked_again_before_more() -> None:
    core = Pair().one
    stream, source = supplied(core)
    assert core.data_to_send(1, 100) is None
    source.stock.append(b"late")
    assert core.data_to_send(1, 100) is None
    assert not core.has_data
    assert source.rooms == [100]
    core.more(stream)
    chunk = core.data_to_send(1, 100)
    assert chunk is not None
    assert bytes(chunk.data) == b"late"


def test_control_priority_is_asked_first() -> None:
    core = Pair().one
    _, bulk = supplied(core, b"bulk")
    _, control = supplied(core, b"control", priority=Priority.CONTROL)
    pieces = []
    while chunk := core.data_to_send(1, 1000):
        pieces.append(bytes(chunk.data))
    assert pieces == [b"control", b"bulk"]
    assert control.rooms
    assert bulk.rooms


def test_streams_of_one_priority_take_turns_whoever_supplies_or_writes() -> None:
    core = Pair(SessionLimits(4, 4096, 8, 4096, 1 << 20, 1 << 22)).one
    core.peer_granted(4, 1 << 20)
    first, _ = supplied(core, *[bytes(CHUNK)] * 4)
    written = core.open("test")
    assert written is not None
    core.write(written, bytes(4 * CHUNK))
    turns = [chunk.stream for _ in range(6) if (chunk := core.data_to_send(1, 1 << 20))]
    assert turns == [first.id, written.id] * 3


def test_credit_bounds_what_a_source_is_asked_for_and_a_window_has_it_asked_again() -> None:
    it = Pair()
    stream, source = supplied(it.one, *[b"x" * 100] * 100)
    # The name was taken outside of the pair.
    it.two.receive_stream(stream.id, 0, b"\x01\x04test", 0.0)
    it.settle()
    assert source.rooms[0] == MINIMUM_WINDOW - NAME
    assert stream.sending.bytes_sent == stream.sending.limit - NAME
    [other] = it.two.take_opened()
    got = b""
    while data := it.two.read(other, 1 << 20):
        got += data
        it.settle()
    assert got == b"x" * 10_000
    assert stream.sending.bytes_delivered == stream.sending.bytes_sent == 10_000


def test_a_full_session_asks_no_source_until_something_is_acknowledged() -> None:
    limits = SessionLimits(12, 8300, 32, 8300, 8192, 32_768)
    it = Pair(limits)
    it.one.peer_granted(12, 8300)
    stream = it.one.open("test")
    assert stream is not None
    it.settle()
    assert stream.sending.acked == NAME, "no WINDOW for this stream comes that would have its source asked"
    for _ in range(8):
        writer = it.one.open("test")
        assert writer is not None
        it.one.write(writer, bytes(8192))
    while chunk := it.one.data_to_send(1, 1 << 20):
        it.two.receive_stream(chunk.stream, chunk.offset, bytes(chunk.data), 0.0)
    source = Source([b"x" * 50])
    it.one.supply(stream, source)
    assert it.one.data_to_send(1, 1 << 20) is None
    assert not source.rooms
    it.settle()
    assert len(source.rooms) == 2
    assert stream.sending.bytes_delivered == 50


def test_the_end_of_writing_is_the_end_of_asking() -> None:
    it = Pair()
    stream, source = supplied(it.one, b"never asked for")
    it.one.finish(stream)
    it.one.more(stream)
    assert it.one.data_to_send(1, 100) is None
    assert not source.rooms
    assert stream.sending.final == NAME
    with pytest.raises(ValueError, match="has ended"):
        it.one.supply(stream, source)


@pytest.mark.parametrize("ending", ["reset", "stopped by the peer", "session closed"])
def test_a_source_is_dropped_with_its_stream(ending: str) -> None:
    it = Pair()
    stream, source = supplied(it.one, b"never asked for")
    if ending == "reset":
        it.one.reset(stream, 1)
    elif ending == "session closed":
        it.one.close()
    else:
        it.two.receive_stream(stream.id, 0, b"\x01\x04test", 0.0)
        [other] = it.two.take_opened()
        it.two.stop(other, 1)
        it.move(it.two, it.one)
    it.one.more(stream)
    assert it.one.data_to_send(1, 100) is None
    assert not source.rooms
    assert stream.sending.source is None


def test_an_acknowledged_reset_delivers_nothing() -> None:
    """What the peer had before counts; the acknowledgement of the RESET itself does not."""
    it = Pair()
    stream, _ = supplied(it.one, b"arrives", b"is lost")
    it.two.receive_stream(stream.id, 0, b"\x01\x04test", 0.0)
    chunk = it.one.data_to_send(1, 7)
    assert chunk is not None
    it.two.receive_stream(stream.id, chunk.offset, bytes(chunk.data), 0.0)
    it.two.handle_timeout(1.0)
    it.move(it.two, it.one)
    assert it.one.data_to_send(1, 7) is not None
    it.one.reset(stream, 1)
    it.settle()
    assert stream.sending.acked == NAME + 15
    assert stream.sending.bytes_sent == 14
    assert stream.sending.bytes_delivered == 7


def test_bytes_counted_leave_the_name_out_on_the_side_that_opens_only() -> None:
    it = Pair()
    stream, _ = supplied(it.one, b"question")
    it.two.receive_stream(stream.id, 0, b"\x01\x04test", 0.0)
    assert (stream.sending.bytes_sent, stream.sending.bytes_delivered) == (0, 0)
    [other] = it.two.take_opened()
    it.two.supply(other, Source([b"answer"]))
    it.settle()
    assert (stream.sending.bytes_sent, stream.sending.bytes_delivered) == (8, 8)
    assert (other.sending.bytes_sent, other.sending.bytes_delivered) == (6, 6)
