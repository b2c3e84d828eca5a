"""Packets become events, and ACKs are due when they should be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import ProtocolViolation, varint
from overlay.protocol.udp.inbox import ControlData, Event, Inbox
from overlay.protocol.udp.payload import (
    Ack,
    Close,
    Datagram,
    Done,
    FrameType,
    StreamPiece,
    encode_ack,
    encode_close,
    encode_piece,
    read_frames,
)
from overlay.protocol.udp.rtt import MAX_ACK_DELAY


class Acks:
    """An inbox and the ACKs that it has found."""

    def __init__(self) -> None:
        self.found: list[tuple[Ack, float]] = []
        self.inbox = Inbox(lambda ack, now: self.found.append((ack, now)), lambda: 0)

    def take(self, *payloads: bytes, first: int = 0, now: float = 1.0) -> list[Event]:
        self.inbox.receive(enumerate(payloads, first), now)
        return self.inbox.take_events()


def stream(number: int, offset: int, data: bytes) -> bytes:
    return b"\x04" + varint(number) + varint(offset) + data


def control(events: list[Event]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, ControlData))


@pytest.mark.parametrize("number", [0, 63, 64, 2**31])
@pytest.mark.parametrize("offset", [0, 100, 20_000, 2**30 - 3, 2**30, 2**60])
def test_piece_of_a_stream_is_read_whatever_the_width_of_its_numbers(number: int, offset: int) -> None:
    assert Acks().take(stream(number, offset, b"abc")) == [StreamPiece(number, offset, b"abc")]


def test_pieces_that_continue_each_other_are_one_event() -> None:
    acks = Acks()
    events = acks.take(
        stream(5, 0, b"abc"), stream(5, 3, b"def"), b"\x01", b"\x05\x05\x06\x01g" + stream(5, 7, b"h"),
        stream(6, 8, b"x"), stream(5, 8, b"i"),
    )  # fmt: skip
    assert events == [StreamPiece(5, 0, b"abcdefgh"), StreamPiece(6, 8, b"x"), StreamPiece(5, 8, b"i")]
    assert acks.take(stream(5, 9, b"j"), first=6) == [StreamPiece(5, 9, b"j")]


def test_data_of_events_are_bytes_of_their_own() -> None:
    buffer = bytearray(stream(5, 0, b"abc"))
    acks = Acks()
    acks.inbox.receive([(0, memoryview(buffer))], 1.0)
    [piece] = acks.inbox.take_events()
    buffer[:] = bytes(len(buffer))
    assert piece == StreamPiece(5, 0, b"abc")
    assert isinstance(piece, StreamPiece)
    assert type(piece.data) is bytes


def test_packet_that_came_before_is_dropped() -> None:
    acks = Acks()
    assert acks.take(stream(5, 0, b"abc"))
    assert acks.take(stream(5, 0, b"abc"), now=9.0) == []
    assert acks.inbox.duplicates == 1


def test_control_bytes_come_in_order_and_once() -> None:
    acks = Acks()
    assert acks.take(encode_piece(FrameType.CONTROL, 3, b"def")) == []
    assert control(acks.take(encode_piece(FrameType.CONTROL, 0, b"abc"), first=1)) == b"abcdef"
    assert acks.take(encode_piece(FrameType.CONTROL, 0, b"abc"), first=2) == []


def test_other_frames_are_events_and_acks_go_to_the_sending_half() -> None:
    acks = Acks()
    events = acks.take(encode_ack(0.5, [(3, 4)], 100) + b"\x0b" + encode_close(7, "why"), b"\x06data")
    assert events == [Done(), Close(7, "why"), Datagram(b"data")]
    assert acks.found == [(Ack(4, 0.5, [(3, 4)]), 1.0)]


@pytest.mark.parametrize("payload", [b"", b"\x04", b"\x04\x05", b"\x04\x05\x80", b"\x04\x05\x00", b"\x04\x40", b"\x0d",
                                     b"\x04\x05\xff\xff\xff\xff\xff\xff\xff\xffx"])  # fmt: skip
def test_nonsense_is_a_violation(payload: bytes) -> None:
    with pytest.raises(ProtocolViolation) as caught:
        Acks().take(payload)
    assert caught.value.code == CloseCode.FRAME_ERROR


def test_handshake_data_after_the_handshake_is_a_violation() -> None:
    with pytest.raises(ProtocolViolation) as caught:
        Acks().take(encode_piece(FrameType.CRYPTO, 0, b"x"))
    assert caught.value.code == CloseCode.STATE_ERROR


def test_one_packet_is_acknowledged_after_the_delay() -> None:
    acks = Acks()
    acks.take(b"\x01", now=1.0)
    assert acks.inbox.ack_due() == 1.0 + MAX_ACK_DELAY
    [ack], _ = read_frames(acks.inbox.take_ack(1.02, 100))
    assert isinstance(ack, Ack)
    assert ack.ranges == [(0, 0)]
    assert ack.delay == pytest.approx(0.02, abs=2e-6)
    assert acks.inbox.ack_due() is None
    assert acks.inbox.take_ack(2.0, 100) == b""


def test_second_packet_is_acknowledged_at_once() -> None:
    acks = Acks()
    acks.take(b"\x01", now=1.0)
    acks.take(stream(5, 0, b"x"), first=1, now=1.01)
    assert acks.inbox.ack_due() == 1.01


def test_packet_out_of_order_is_acknowledged_at_once() -> None:
    acks = Acks()
    acks.take(b"\x01", first=1, now=1.0)
    assert acks.inbox.ack_due() == 1.0


def test_acks_and_padding_alone_are_not_acknowledged() -> None:
    acks = Acks()
    acks.take(encode_ack(0.0, [(3, 4)], 100), b"\0\0\0", encode_close(0, ""))
    assert acks.inbox.ack_due() is None


@given(st.lists(st.tuples(st.integers(0, 80), st.binary(max_size=60)), max_size=30))
def test_whatever_comes_is_an_event_or_a_violation(packets: list[tuple[int, bytes]]) -> None:
    acks = Acks()
    try:
        acks.inbox.receive(packets, 1.0)
    except ProtocolViolation:
        return
    acks.inbox.take_events()
    assert {number for number, _ in packets} <= {
        number for low, high in acks.inbox.numbers.ranges() for number in range(low, high + 1)
    } | set(range(acks.inbox.numbers.floor))


def test_a_clock_that_is_a_tick_behind_makes_no_negative_delay() -> None:
    acks = Acks()
    acks.take(b"\x01", now=2.0)
    [ack], _ = read_frames(acks.inbox.take_ack(1.999, 100))
    assert isinstance(ack, Ack)
    assert ack.delay == 0
