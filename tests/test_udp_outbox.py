"""What is cut into packets, in which order, and what comes back when they are lost."""

from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.udp.outbox import DATAGRAM_AHEAD, DATAGRAM_COST, DATAGRAM_QUEUE, MAXIMUM_FRAMES, Outbox
from overlay.protocol.udp.payload import ControlPiece, Datagram, Done, Frame, StreamPiece, read_frames
from overlay.protocol.udp.sent import SentBurst

ROOM = 200


def outbox(room: int = ROOM) -> Outbox:
    box = Outbox()
    box.set_room(room)
    return box


def burst(first: int = 0) -> SentBurst:
    return SentBurst(first, 0.0)


def frames(payload: bytes) -> list[Frame]:
    return read_frames(payload)[0] if payload else []


def test_bulk_is_cut_into_full_packets_of_one_run() -> None:
    box, record = outbox(), burst(10)
    data = bytes(range(250)) * 4
    box.add_stream(5, 0, data)
    payloads = box.take_run(10, ROOM, 64, record)
    assert [len(payload) for payload in payloads] == [ROOM] * 5
    pieces = [piece for payload in payloads for piece in frames(payload)]
    assert pieces == [StreamPiece(5, at, data[at : at + 194]) for at in range(0, 970, 194)]
    [run] = record.runs
    assert (run.first, run.last, run.stream, run.offset, run.step, len(run.data)) == (10, 14, 5, 0, 194, 970)
    assert box.stream_bytes == 30
    assert box.take_run(15, ROOM, 64, record) == []
    assert frames(box.fill(15, ROOM, b"", record)) == [StreamPiece(5, 970, data[970:])]
    assert not box


def test_offset_beyond_a_gigabyte_takes_eight_bytes() -> None:
    box = outbox()
    box.add_stream(5, 2**30 - 10, bytes(1000))
    [first, *_] = box.take_run(0, ROOM, 2, burst())
    assert frames(first) == [StreamPiece(5, 2**30 - 10, bytes(ROOM - 10))]


def test_run_is_no_longer_than_allowed() -> None:
    box, record = outbox(), burst()
    box.add_stream(5, 0, bytes(10_000))
    assert len(box.take_run(0, ROOM, 3, record)) == 3
    assert len(box.take_run(3, ROOM, 2, record)) == 2
    assert [(run.first, run.last) for run in record.runs] == [(0, 2), (3, 4)]


def test_control_datagram_and_stream_leave_in_this_order() -> None:
    box, record = outbox(), burst()
    box.add_stream(5, 0, bytes(1000))
    assert box.add_datagram(b"datagram")
    box.control.write(b"control")
    assert box.add_frame(b"\x0b", again=True)
    assert box.take_run(0, ROOM, 64, record) == []
    assert frames(box.fill(0, ROOM, b"", record)) == [Done(), ControlPiece(0, b"control"), Datagram(b"datagram")]
    assert len(box.take_run(1, ROOM, 64, record)) == 5


def test_datagrams_without_end_leave_half_to_streams() -> None:
    """A queue of datagrams that is always full: streams get every other turn, in runs and in single packets."""
    box = outbox()
    kinds = []
    for number in range(20):
        while box.add_datagram(bytes(150)):
            pass
        box.add_stream(5, 200 * number, bytes(200))
        payloads = box.take_run(number, ROOM, 1, burst()) or [box.fill(number, ROOM, b"", burst())]
        kinds += [type(frame) for payload in payloads for frame in frames(payload)]
    assert kinds.count(StreamPiece) >= kinds.count(Datagram) >= 9


def test_control_and_bulk_share_a_packet() -> None:
    box, record = outbox(), burst()
    box.add_stream(5, 0, bytes(1000))
    box.control.write(b"control")
    payload = box.fill(0, ROOM, b"", record)
    assert len(payload) == ROOM
    control, piece = frames(payload)
    assert control == ControlPiece(0, b"control")
    assert isinstance(piece, StreamPiece)


def test_short_pieces_share_a_packet() -> None:
    box, record = outbox(), burst()
    for stream in range(6):
        box.add_stream(stream, stream * 100, bytes([stream]) * 20)
    assert frames(box.fill(0, ROOM, b"", record)) == [
        StreamPiece(stream, stream * 100, bytes([stream]) * 20) for stream in range(6)
    ]


def test_datagrams_of_one_size_make_a_run() -> None:
    box, record = outbox(), burst()
    for size in (50, 50, 50, 60):
        assert box.add_datagram(bytes(size))
    assert [len(payload) for payload in box.take_run(0, ROOM, 64, record)] == [51, 51, 51]
    record.size = 80
    assert box.take_run(3, ROOM, 64, record) == []
    assert frames(box.fill(3, ROOM, b"", record)) == [Datagram(bytes(60))]


def test_datagrams_have_bounds() -> None:
    box = outbox()
    assert box.add_datagram(bytes(ROOM - 1))
    assert not box.add_datagram(bytes(ROOM))
    box = outbox()
    count = 0
    while box.add_datagram(b""):
        count += 1
    assert count == DATAGRAM_QUEUE // DATAGRAM_COST


def test_datagrams_that_fit_no_longer_are_dropped() -> None:
    box = outbox()
    for size in (150, 50, 150):
        box.add_datagram(bytes(size))
    box.set_room(100)
    assert frames(box.fill(0, 100, b"", burst())) == [Datagram(bytes(50))]
    assert not box


def test_frames_have_a_bound() -> None:
    box = outbox()
    assert all(box.add_frame(b"\x0b", again=False) for _ in range(MAXIMUM_FRAMES))
    assert not box.add_frame(b"\x0b", again=False)


def test_what_is_lost_comes_back_but_for_datagrams() -> None:
    box, record = outbox(), burst()
    box.add_stream(5, 0, bytes(100))
    box.control.write(b"control")
    box.add_frame(b"\x0b", again=True)
    box.add_frame(b"\x01", again=False)
    box.fill(0, ROOM, b"", record)
    assert not box
    box.give_back(record, 1, 5)
    assert not box
    box.give_back(record, 0, 0)
    assert frames(box.fill(1, ROOM, b"", burst(1))) == [
        Done(),
        ControlPiece(0, b"control"),
        StreamPiece(5, 0, bytes(100)),
    ]


def test_what_was_heard_does_not_come_back() -> None:
    box, record = outbox(), burst()
    box.control.write(b"control")
    box.fill(0, ROOM, b"", record)
    box.acknowledged(record, 0, 0)
    box.give_back(record, 0, 0)
    assert not box


def test_empty_piece_is_nothing() -> None:
    box = outbox()
    box.add_stream(5, 0, b"")
    assert not box


@given(st.data())
def test_whatever_is_lost_every_byte_leaves_again(draw: st.DataObject) -> None:
    """Packets of changing sizes, some lost, until all is acknowledged."""
    box = outbox(5000)
    wanted: dict[tuple[int, int], int] = {}
    for stream in range(draw.draw(st.integers(1, 4))):
        offset = draw.draw(st.sampled_from([0, 60, 16_000, 2**30 - 50]))
        for _ in range(draw.draw(st.integers(1, 3))):
            data = draw.draw(st.binary(min_size=1, max_size=40)) * draw.draw(st.sampled_from([1, 40]))
            box.add_stream(stream, offset, data)
            wanted |= {(stream, offset + at): byte for at, byte in enumerate(data)}
            offset += len(data)
    number = 0
    for turn in range(300):
        if not box:
            break
        room = draw.draw(st.integers(64, 1500)) if turn < 50 else 1500
        record = burst(number)
        payloads = box.take_run(number, room, 5, record) or [box.fill(number, room, b"", record)]
        for payload in payloads:
            assert 0 < len(payload) <= room
            if turn < 50 and draw.draw(st.booleans()):
                box.give_back(record, number, number)
            else:
                for piece in frames(payload):
                    assert isinstance(piece, StreamPiece)
                    for at, byte in enumerate(piece.data):
                        assert wanted.pop((piece.stream, piece.offset + at)) == byte
            number += 1
    assert not wanted
    assert box.stream_bytes == 0


@given(st.integers(-(1 << 20), 1 << 24), st.integers(0, ROOM - 1))
def test_what_there_is_room_for_is_never_dropped(allowed: int, size: int) -> None:
    """Datagrams are asked for as long as there is room; each that was given has to be taken."""
    box = outbox()
    count = 0
    while box.datagram_room(allowed) > 0:
        assert box.add_datagram(bytes(size))
        count += 1
    assert count * (size + DATAGRAM_COST) >= min(
        DATAGRAM_AHEAD + max(0, allowed), DATAGRAM_QUEUE - ROOM - DATAGRAM_COST
    )
    assert count * size <= DATAGRAM_AHEAD + max(0, allowed) + size
