"""Both buffers of a stream against plain models."""

from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.buffers import GATHERED, SMALL, ReceiveBuffer, SendBuffer

SOURCE = bytes(value % 251 for value in range(200_000))
sizes = st.sampled_from([0, 1, 2, 50, 1023, 1024, SMALL - 1, SMALL, 20_000])


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["bytes", "bytearray", "memoryview", "ack"]), sizes, st.floats(0, 1)), max_size=30
    )
)
def test_send_buffer_keeps_what_is_not_acknowledged(steps: list[tuple[str, int, float]]) -> None:
    buffer = SendBuffer()
    for kind, size, share in steps:
        if kind == "ack":
            buffer.acknowledge(buffer.start + int(share * len(buffer)))
        elif buffer.end + size <= len(SOURCE):
            piece = SOURCE[buffer.end : buffer.end + size]
            if kind == "bytearray":
                changing = bytearray(piece)
                buffer.append(changing)
                changing[:] = bytes(size)
            else:
                buffer.append(piece if kind == "bytes" else memoryview(piece))
        position = buffer.start
        while position < buffer.end:
            part = bytes(buffer.peek(position, 7000))
            assert 0 < len(part) <= 7000
            assert part == SOURCE[position : position + len(part)]
            position += len(part)


def test_peek_within_a_piece_hands_out_no_more_than_asked() -> None:
    buffer = SendBuffer()
    buffer.append(SOURCE[:100_000])
    buffer.acknowledge(10)
    assert bytes(buffer.peek(99_990, 500)) == SOURCE[99_990:100_000]
    assert bytes(buffer.peek(50, 5)) == SOURCE[50:55]


def test_large_bytes_are_not_copied_and_small_ones_are_gathered() -> None:
    buffer = SendBuffer()
    large = bytes(SMALL)
    buffer.append(large)
    assert buffer.peek(0, SMALL) is large
    for _ in range(GATHERED):
        buffer.append(b"x")
    assert len(buffer._pieces) <= 3


def test_discarded_bytes_are_gone_but_their_offsets_stay() -> None:
    buffer = SendBuffer()
    buffer.append(b"12345")
    buffer.acknowledge(2)
    buffer.discard()
    assert (buffer.start, buffer.end, len(buffer)) == (5, 5, 0)
    buffer.append(b"6")
    assert bytes(buffer.peek(5, 9)) == b"6"


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("insert"), st.integers(0, 5000), st.sampled_from([0, 1, 3, 700, 1024, 3000])),
            st.tuples(st.just("read"), st.sampled_from([0, 1, 10, 1024, 9000]), st.just(0)),
        ),
        max_size=60,
    )
)
def test_receive_buffer_agrees_with_a_map_of_bytes(steps: list[tuple[str, int, int]]) -> None:
    """Overlaps, duplicates and gaps, against a dictionary from offset to byte."""
    buffer = ReceiveBuffer()
    model: dict[int, int] = {}
    consumed = 0
    for kind, number, size in steps:
        if kind == "insert":
            before = buffer.received
            data = SOURCE[number : number + size]
            news = buffer.insert(number, data)
            model.update(enumerate(data, number))
            assert news is (buffer.received > before)
        else:
            part = buffer.read(number)
            assert part == SOURCE[consumed : consumed + len(part)]
            assert len(part) == min(number, len(buffer) + len(part))
            consumed += len(part)
        received = 0
        while received in model:
            received += 1
        beyond = sorted(offset for offset in model if offset > received)
        islands = sum(1 for offset in beyond if offset - 1 not in model)
        assert (buffer.consumed, buffer.received, len(buffer)) == (consumed, received, received - consumed)
        assert buffer.gaps == islands
        assert sum(len(piece) for segment in buffer._gaps for piece in segment.pieces) == len(beyond)
    assert buffer.read(10_000) == SOURCE[consumed : buffer.received]


def test_empty_piece_beyond_the_end_leaves_no_trace() -> None:
    buffer = ReceiveBuffer()
    assert not buffer.insert(100, b"")
    assert buffer.gaps == 0


def test_alternating_bytes_are_joined() -> None:
    """A peer that sends every second byte and then the rest must not make each byte cost an object."""
    buffer = ReceiveBuffer()
    for start in range(1000, 200, -2):
        buffer.insert(start, b"a")
        buffer.insert(start + 1, b"b")
    assert buffer.gaps == 1
    assert len(buffer._gaps[0].pieces) < 10
    buffer.insert(0, bytes(300))
    assert len(buffer._ready) < 10


def test_one_byte_pieces_in_order_are_joined() -> None:
    buffer = ReceiveBuffer()
    for offset in range(5000):
        assert buffer.insert(offset, SOURCE[offset : offset + 1])
    assert len(buffer._ready) == 1
    assert buffer.read(5000) == SOURCE[:5000]


def test_discard_keeps_pieces_beyond_a_gap_and_skip_does_not() -> None:
    buffer = ReceiveBuffer()
    buffer.insert(0, b"abc")
    buffer.insert(5, b"fg")
    buffer.discard()
    assert (buffer.consumed, len(buffer), buffer.gaps) == (3, 0, 1)
    buffer.insert(3, b"de")
    assert buffer.read(9) == b"defg"
    buffer.insert(9, b"x")
    buffer.skip_to(20)
    assert (buffer.consumed, buffer.received, buffer.gaps) == (20, 20, 0)
