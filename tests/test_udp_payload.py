"""Frames: golden vectors, every frame there and back, and whatever else a peer may put into a packet."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import VARINT_MAX, ProtocolViolation, varint
from overlay.protocol.udp.payload import (
    DONE_FRAME,
    PING_FRAME,
    Ack,
    Close,
    ControlPiece,
    CryptoPiece,
    Datagram,
    Done,
    Frame,
    FrameType,
    NewId,
    PathChallenge,
    PathResponse,
    StreamPiece,
    encode_ack,
    encode_challenge,
    encode_close,
    encode_new_id,
    encode_piece,
    read_frames,
)
from overlay.protocol.udp.ranges import MAXIMUM_RANGES

GOLDEN: list[tuple[str, list[Frame], bool]] = [
    ("00", [], False),
    ("01", [], True),
    ("02" + "4064" + "0a" + "04" + "00", [Ack(100, 10e-6, [(96, 100)])], False),
    ("02" + "4064" + "00" + "00" + "02" + "00020003" + "00010001",
     [Ack(100, 0.0, [(100, 100), (95, 97), (93, 93)])], False),
    ("03" + "05" + "03" + "616263", [ControlPiece(5, b"abc")], True),
    ("04" + "07" + "80000100" + "6869", [StreamPiece(7, 256, b"hi")], True),
    ("05" + "07" + "00" + "02" + "6869" + "01", [StreamPiece(7, 0, b"hi")], True),
    ("06" + "6869", [Datagram(b"hi")], True),
    ("06", [Datagram(b"")], True),
    ("07" + "0001020304050607", [PathChallenge(bytes(range(8)))], True),
    ("08" + "0001020304050607", [PathResponse(bytes(range(8)))], True),
    ("09" + "20" + "03" + "776879", [Close(0x20, "why")], False),
    ("0a" + "02" + "aa" * 8 + "bb" * 16, [NewId(2, b"\xaa" * 8, b"\xbb" * 16)], True),
    ("0b", [Done()], True),
    ("0c" + "00" + "01" + "16", [CryptoPiece(0, b"\x16")], True),
    ("0000" + "0b" + "000000" + "01", [Done()], True),
]  # fmt: skip

BAD = [
    "",
    "0d",
    "ff",
    "02",
    "024064",
    "02" + "04" + "00" + "05" + "00",
    "02" + "04" + "00" + "00" + "01" + "00000001",
    "02" + "04" + "00" + "00" + "01" + "00010000",
    "02" + "04" + "00" + "00" + "01" + "00040001",
    "02" + "04" + "00" + "00" + "02" + "00010001",
    "02" + "7fff" + "00" + "00" + "41" + "00010001" * 65,
    "03" + "00" + "00",
    "03" + "00" + "05" + "6162",
    "03" + "ffffffffffffffff" + "01" + "61",
    "04",
    "04" + "07",
    "04" + "07" + "00",
    "04" + "07" + "ffffffffffffffff" + "61",
    "05" + "07" + "00" + "00",
    "05" + "07" + "00" + "03" + "6869",
    "07" + "00010203040506",
    "08",
    "09" + "20" + "03" + "77",
    "09" + "20" + "01" + "ff",
    "0a" + "02" + "aa" * 8,
    "0c" + "00" + "00",
]

offsets = st.integers(0, VARINT_MAX - 100)
data = st.binary(min_size=1, max_size=100)


@st.composite
def descending(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Ranges from the largest downwards, each a gap away from the one before."""
    steps = draw(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=80))
    low = sum(gap + length for gap, length in steps) + draw(st.integers(0, 2**40))
    ranges: list[tuple[int, int]] = []
    for gap, length in steps:
        high = low - gap - 1
        low = high - length + 1
        ranges.append((low, high))
    return [one for one in ranges if one[0] >= 0]


def written(frame: Frame) -> bytes:
    if isinstance(frame, Ack):
        return encode_ack(frame.delay, frame.ranges, 2000)
    if isinstance(frame, ControlPiece):
        return encode_piece(FrameType.CONTROL, frame.offset, frame.data)
    if isinstance(frame, CryptoPiece):
        return encode_piece(FrameType.CRYPTO, frame.offset, frame.data)
    if isinstance(frame, PathChallenge):
        return encode_challenge(FrameType.PATH_CHALLENGE, frame.data)
    if isinstance(frame, PathResponse):
        return encode_challenge(FrameType.PATH_RESPONSE, frame.data)
    if isinstance(frame, Close):
        return encode_close(frame.code, frame.reason)
    if isinstance(frame, NewId):
        return encode_new_id(frame.sequence, frame.connection_id, frame.token)
    assert isinstance(frame, Done)
    return DONE_FRAME


frames: st.SearchStrategy[Frame] = st.one_of(
    st.builds(ControlPiece, offsets, data),
    st.builds(CryptoPiece, offsets, data),
    st.builds(PathChallenge, st.binary(min_size=8, max_size=8)),
    st.builds(PathResponse, st.binary(min_size=8, max_size=8)),
    st.builds(Close, st.integers(0, VARINT_MAX), st.text(max_size=50)),
    st.builds(NewId, offsets, st.binary(min_size=8, max_size=8), st.binary(min_size=16, max_size=16)),
    st.just(Done()),
)


@pytest.mark.parametrize(("wire", "expected", "eliciting"), GOLDEN)
def test_golden_vector_is_read(wire: str, expected: list[Frame], eliciting: bool) -> None:
    assert read_frames(bytes.fromhex(wire)) == (expected, eliciting)
    assert read_frames(memoryview(bytearray.fromhex(wire))) == (expected, eliciting)


@pytest.mark.parametrize("wire", BAD)
def test_nonsense_is_a_violation(wire: str) -> None:
    with pytest.raises(ProtocolViolation) as caught:
        read_frames(bytes.fromhex(wire))
    assert caught.value.code == CloseCode.FRAME_ERROR


@given(st.lists(frames, max_size=20))
def test_frames_are_read_as_they_were_written(sent: list[Frame]) -> None:
    payload = PING_FRAME + b"\0\0".join(map(written, sent))
    assert read_frames(payload) == (sent, True)


@given(descending(), st.integers(0, 10_000_000))
def test_ack_is_read_as_it_was_written(ranges: list[tuple[int, int]], microseconds: int) -> None:
    if not ranges:
        return
    [ack], eliciting = read_frames(encode_ack(microseconds / 1e6, ranges, 2000))
    assert not eliciting
    assert isinstance(ack, Ack)
    assert ack.delay == pytest.approx(microseconds / 1e6, abs=1.1e-6)
    assert ack.largest == ranges[0][1]
    assert ack.ranges == ranges[: MAXIMUM_RANGES + 1]


@given(descending(), st.integers(32, 300))
def test_ack_leaves_out_the_lowest_ranges_when_room_is_short(ranges: list[tuple[int, int]], room: int) -> None:
    if not ranges:
        return
    frame = encode_ack(0.1, ranges, room)
    assert len(frame) <= room
    [ack], _ = read_frames(frame)
    assert isinstance(ack, Ack)
    assert ack.ranges == ranges[: len(ack.ranges)]


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([(1_000_000, 1_000_001), (5, 900_000)], [(1_000_000, 1_000_001)]),
        ([(200_000, 200_001), (5, 199_000), (1, 2)], [(200_000, 200_001), (199_000 - 0xFFFE, 199_000)]),
    ],
)
def test_ack_names_nothing_that_lies_too_far_back(
    ranges: list[tuple[int, int]], expected: list[tuple[int, int]]
) -> None:
    [ack], _ = read_frames(encode_ack(0.0, ranges, 200))
    assert isinstance(ack, Ack)
    assert ack.ranges == expected


def test_ranges_below_the_floor_are_left_out() -> None:
    frame = encode_ack(0.0, [(90, 100), (70, 80), (50, 60), (30, 40)], 200) + DONE_FRAME
    [ack, done], _ = read_frames(frame, floor=65)
    assert isinstance(ack, Ack)
    assert ack.ranges == [(90, 100), (70, 80), (50, 60)]
    assert done == Done()


def test_second_ack_in_a_packet_is_a_violation() -> None:
    """Ten thousand of six bytes each would keep the sender busy for seconds: each may look at 500 records."""
    with pytest.raises(ProtocolViolation):
        read_frames(encode_ack(0.0, [(5, 5)], 100) + b"\x01" + encode_ack(0.0, [(6, 6)], 100))


def test_long_reason_is_cut() -> None:
    [close], _ = read_frames(encode_close(1, "ä" * 500))
    assert close == Close(1, "ä" * 128)


@given(st.binary(max_size=400) | st.lists(st.sampled_from(range(14)), max_size=200).map(bytes))
def test_garbage_parses_or_is_a_violation(payload: bytes) -> None:
    try:
        found, _ = read_frames(payload)
    except ProtocolViolation:
        return
    assert len(found) <= len(payload)


@given(st.data(), st.lists(frames, min_size=1, max_size=5))
def test_changed_packet_parses_or_is_a_violation(draw: st.DataObject, sent: list[Frame]) -> None:
    payload = bytearray(b"".join(map(written, sent)))
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(payload) - 1))
        payload[at] = draw.draw(st.integers(0, 255))
    del payload[draw.draw(st.integers(0, len(payload))) :]
    try:
        read_frames(payload)
    except ProtocolViolation:
        return


@pytest.mark.parametrize(
    "payload",
    [
        b"\x00" * 65_000,
        b"\x01" * 65_000,
        b"\x00\x01" * 32_500,
        b"\x0b" * 65_000,
        (b"\x03\x00\x01x") * 16_000,
        (b"\x05" + varint(5) + varint(0) + b"\x01x") * 13_000,
    ],
    ids=["padding", "ping", "padding and ping", "done", "control", "short pieces"],
)
def test_largest_packet_of_the_costliest_frames_is_read(payload: bytes) -> None:
    """Ten times, which the suite's limit on a test would not let pass if the cost were quadratic."""
    for _ in range(10):
        assert len(read_frames(payload)[0]) <= len(payload)
