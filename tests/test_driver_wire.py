"""Frames on a lane and in datagrams: what they look like, and what a reader makes of anything else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.driver.wire import (
    LONGEST_GREETING,
    PROTOCOL,
    Greeting,
    LaneReader,
    WireError,
    decode_datagram,
    encode_datagram,
    frame_head,
)
from overlay.protocol.frames import MAX_PROTOCOL_NAME
from overlay.protocol.stream import Priority

LIMIT = 20_000

GREETINGS = [
    (Greeting(0, 0), b"\x02\x00\x00"),
    (Greeting(63, 64), b"\x03\x3f\x40\x40"),
    (Greeting(65_536, 1), b"\x05\x80\x01\x00\x00\x01"),
    (Greeting(2**62 - 1, 2**62 - 2), b"\x10" + b"\xff" * 15 + b"\xfe"),
]
HELLO = Greeting(77, 5).encode()
FRAMES = [
    (b"", b"\x00"),
    (b"a", b"\x01a"),
    (b"b" * 63, b"\x3f" + b"b" * 63),
    (b"c" * 64, b"\x40\x40" + b"c" * 64),
    (b"d" * 16_383, b"\x7f\xff" + b"d" * 16_383),
    (b"e" * 16_384, b"\x80\x00\x40\x00" + b"e" * 16_384),
]
REFUSED = [
    ("a greeting longer than any", b"\x40\x41"),
    ("a greeting longer than any, in eight bytes", b"\xc0\x00\x00\x00\x00\x00\x00\x41"),
    ("an empty greeting", b"\x00"),
    ("a greeting of one number", b"\x01\x00"),
    ("a greeting that ends within its first number", b"\x02\x80\x00"),
    ("a greeting that ends within its second number", b"\x03\x00\x80\x00"),
    ("a frame beyond the limit", HELLO + frame_head(LIMIT + 1)),
    ("a frame of 2**62 - 1 bytes", HELLO + b"\xff" * 8),
]


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` in pieces of these sizes over and over."""
    found = []
    while data:
        for cut in cuts:
            found.append(data[:cut])
            data = data[cut:]
    return found


def read(reader: LaneReader, parts: list[bytes]) -> list[bytes]:
    return [frame for part in parts for frame in reader.receive(part)]


@pytest.mark.parametrize(("greeting", "data"), GREETINGS)
def test_greeting_is_these_bytes(greeting: Greeting, data: bytes) -> None:
    assert greeting.encode() == data


@pytest.mark.parametrize("number", [-1, 2**62])
def test_greeting_with_an_impossible_number_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match=str(abs(number))):
        Greeting(number, 0).encode()
    with pytest.raises(ValueError, match=str(abs(number))):
        Greeting(0, number).encode()


@pytest.mark.parametrize(("greeting", "data"), GREETINGS)
@pytest.mark.parametrize("size", [1, 1000])
def test_greeting_is_read_whole_and_byte_by_byte(greeting: Greeting, data: bytes, size: int) -> None:
    reader = LaneReader(LIMIT)
    *before, last = pieces(data, [size])
    assert not read(reader, before)
    assert reader.greeting is None
    assert not reader.receive(last)
    assert reader.greeting == greeting


@pytest.mark.parametrize("more", [1, LONGEST_GREETING - 2])
def test_what_later_versions_add_to_the_greeting_is_ignored(more: int) -> None:
    reader = LaneReader(LIMIT)
    assert reader.receive(frame_head(2 + more) + b"\x09\x08" + b"?" * more + b"\x01a") == [b"a"]
    assert reader.greeting == Greeting(9, 8)


@pytest.mark.parametrize(("frame", "data"), FRAMES)
def test_frame_is_these_bytes(frame: bytes, data: bytes) -> None:
    assert frame_head(len(frame)) + frame == data


@pytest.mark.parametrize(("frame", "data"), FRAMES)
@pytest.mark.parametrize("size", [1, 100_000])
def test_frame_is_read_whole_and_byte_by_byte(frame: bytes, data: bytes, size: int) -> None:
    reader = LaneReader(LIMIT)
    *before, last = pieces(HELLO + data, [size])
    assert not read(reader, before)
    assert reader.receive(last) == [frame]


@pytest.mark.parametrize(("frame", "data"), FRAMES)
@pytest.mark.parametrize("size", [1, 100_000])
def test_what_trails_a_frame_is_kept_for_the_next(frame: bytes, data: bytes, size: int) -> None:
    reader = LaneReader(LIMIT)
    assert read(reader, pieces(HELLO + data + b"\x05ne", [size])) == [frame]
    assert reader.receive(b"xt!") == [b"next!"]


def test_length_in_more_bytes_than_needed_is_read() -> None:
    """RFC 9000 section 16 demands the shortest form of frame types only."""
    reader = LaneReader(LIMIT)
    frames = [b"ab", b"", b"c"]
    data = b"\x40\x02ab" + b"\x80\x00\x00\x00" + b"\xc0" + b"\x00" * 6 + b"\x01c"
    assert read(reader, pieces(HELLO + data, [1])) == frames
    assert reader.receive(data) == frames


@given(
    frames=st.lists(st.sampled_from([0, 1, 63, 64, 300, 16_384]), max_size=12),
    cuts=st.lists(st.integers(1, 9_000), min_size=1, max_size=6),
)
def test_however_a_lane_is_cut_the_frames_are_the_same(frames: list[int], cuts: list[int]) -> None:
    sent = [bytes([number]) * size for number, size in enumerate(frames)]
    lane = HELLO + b"".join(frame_head(len(frame)) + frame for frame in sent)
    reader = LaneReader(LIMIT)
    assert read(reader, pieces(lane, cuts)) == sent
    assert reader.greeting == Greeting(77, 5)


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("data", [data for _, data in REFUSED], ids=[why for why, _ in REFUSED])
def test_broken_rule_is_refused_with_its_last_byte(data: bytes, size: int) -> None:
    reader = LaneReader(LIMIT)
    *before, last = pieces(data, [size])
    assert not read(reader, before)
    with pytest.raises(WireError) as caught:
        reader.receive(last)
    assert caught.value.reason == str(caught.value) != ""


def test_frame_of_just_the_limit_is_taken() -> None:
    reader = LaneReader(3)
    assert reader.receive(HELLO + b"\x03abc") == [b"abc"]
    with pytest.raises(WireError, match="4 bytes, the limit is 3"):
        reader.receive(b"\x04")


def test_limit_does_not_concern_the_greeting() -> None:
    reader = LaneReader(0)
    assert reader.receive(HELLO + b"\x00") == [b""]


@given(data=st.binary(max_size=600), limit=st.integers(0, 300), cuts=st.lists(st.integers(1, 90), min_size=1))
def test_garbage_makes_frames_or_an_error_and_is_not_hoarded(data: bytes, limit: int, cuts: list[int]) -> None:
    """Whole or in pieces, the same; of what made no frame no more is kept than one frame and its length."""

    def take(parts: list[bytes]) -> tuple[list[bytes], Greeting | None, bool]:
        reader = LaneReader(limit)
        frames: list[bytes] = []
        for part in parts:
            try:
                frames += reader.receive(part)
            except WireError:
                return frames, reader.greeting, True
            assert len(reader._rest) <= max(limit, LONGEST_GREETING) + 8
        return frames, reader.greeting, False

    single, greeting, refused = take(pieces(data, [1]))
    assert all(len(frame) <= limit for frame in single)
    assert take(pieces(data, cuts))[1:] == (greeting, refused)
    whole = take([data])
    assert whole == (([] if refused else single), greeting, refused)


@pytest.mark.parametrize(("priority", "mark"), [(Priority.CONTROL, b"\x00"), (Priority.BULK, b"\x01")])
@pytest.mark.parametrize("frame", [b"", b"hello"])
def test_datagram_is_its_priority_and_the_frame(priority: Priority, mark: bytes, frame: bytes) -> None:
    assert encode_datagram(priority, frame) == mark + frame
    assert decode_datagram(mark + frame) == (priority, frame)


@given(data=st.binary(max_size=20))
def test_any_other_datagram_is_none_of_ours(data: bytes) -> None:
    found = decode_datagram(data)
    assert (found is None) == (not data or data[0] > 1)
    assert found is None or encode_datagram(*found) == data


def test_protocol_has_a_name_that_a_stream_can_be_opened_for() -> None:
    assert 0 < len(PROTOCOL.encode()) <= MAX_PROTOCOL_NAME
