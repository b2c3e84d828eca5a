"""The wire format: golden vectors, read in every way; and whatever else a peer may send."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import (
    MAX_CONTROL_BODY,
    MAX_DATAGRAM,
    MAX_REASON,
    MAX_STREAM_BODY,
    MINIMUM_STREAMS,
    MINIMUM_WINDOW,
    VARINT_MAX,
    Accept,
    Close,
    Control,
    Datagram,
    Event,
    Fin,
    FrameReader,
    Gone,
    Hello,
    Ping,
    Pong,
    ProtocolViolation,
    Reset,
    Retire,
    Stop,
    StreamData,
    Streams,
    Sync,
    Window,
    clip,
    encode,
    opening,
    read_varint,
    run_header,
    stream_header,
    varint,
)

HELLO = Hello(0x0102030405060708, 0x1112131415161718, 0x3132333435363738, 0x2122232425262728, 120_000, 3, 0, 16, 4096)
ACCEPT = Accept(0x0102030405060708, 0x1112131415161718, 0x2122232425262728, 120_000, 0, 100, 65_536)
NAMES = "0102030405060708" + "1112131415161718" + "2122232425262728"
FOUR_NAMES = NAMES[:32] + "3132333435363738" + NAMES[32:]

GOLDEN: list[tuple[Control, str]] = [
    (HELLO, "0029" + FOUR_NAMES + "8001d4c0" + "03" + "00" + "10" + "5000"),
    (ACCEPT, "0223" + NAMES + "8001d4c0" + "00" + "4064" + "80010000"),
    (Window(4, 1000, 5096), "0405" + "04" + "43e8" + "53e8"),
    (Streams(32), "0601" + "20"),
    (Fin(5, 16_384), "0805" + "05" + "80004000"),
    (Reset(7, 70, 2**32), "0a0b" + "07" + "4046" + "c000000100000000"),
    (Stop(7, 1), "0c02" + "07" + "01"),
    (Gone(64), "0e02" + "4040"),
    (Ping(0xAABBCCDDEEFF0011), "1008" + "aabbccddeeff0011"),
    (Pong(1), "1208" + "0000000000000001"),
    (Sync(), "1400"),
    (Retire(), "1600"),
    (Close(0x22, "why"), "1804" + "22" + "776879"),
    (Close(0x40, ""), "1802" + "4040"),
    (Datagram(b"\x00\xff"), "1c02" + "00ff"),
    (Datagram(b""), "1c00"),
]

RFC_9000_A1 = [
    ("c2197c5eff14e88c", 151_288_809_941_952_652),
    ("9d7f3e7d", 494_878_333),
    ("7bbd", 15_293),
    ("25", 37),
]

integers = st.integers(0, VARINT_MAX) | st.sampled_from([0, 63, 64, 16_383, 16_384, 2**30 - 1, 2**30, VARINT_MAX])
names = st.integers(1, 2**64 - 1)
nonces = st.integers(0, 2**64 - 1)
grants = (st.integers(MINIMUM_STREAMS, VARINT_MAX), st.integers(MINIMUM_WINDOW, VARINT_MAX))
frames: st.SearchStrategy[Control] = st.one_of(
    st.builds(Hello, names, names, names, names, integers, integers, integers, *grants),
    st.builds(Hello, names, names, st.just(0), st.just(0), integers, integers, integers, *grants),
    st.builds(Accept, names, names, nonces, integers, integers, *grants),
    st.builds(Window, integers, integers, integers),
    st.builds(Streams, integers),
    st.builds(Fin, integers, integers),
    st.builds(Reset, integers, integers, integers),
    st.builds(Stop, integers, integers),
    st.builds(Gone, integers),
    st.builds(Ping, nonces),
    st.builds(Pong, nonces),
    st.just(Sync()),
    st.just(Retire()),
    st.builds(Close, integers, st.text(max_size=60)),
    st.builds(Datagram, st.binary(max_size=200)),
)


def read(data: bytes, *, stream_data: bool = True) -> list[Event]:
    return FrameReader(stream_data=stream_data).receive_data(data)


def joined(events: list[Event]) -> list[Event]:
    """Neighbouring parts of one STREAM frame as one."""
    whole: list[Event] = []
    for event in events:
        last = whole[-1] if whole else None
        if (
            isinstance(event, StreamData)
            and isinstance(last, StreamData)
            and (last.stream, last.offset + len(last.data)) == (event.stream, event.offset)
        ):
            whole[-1] = StreamData(last.stream, last.offset, last.data + event.data)
            continue
        whole.append(event)
    return whole


@pytest.mark.parametrize(("frame", "wire"), GOLDEN)
def test_golden_vector_is_what_is_written(frame: Control, wire: str) -> None:
    assert encode(frame).hex() == wire


@pytest.mark.parametrize(("frame", "wire"), GOLDEN)
def test_golden_vector_is_read_whole_byte_by_byte_and_with_trailing_data(frame: Control, wire: str) -> None:
    data = bytes.fromhex(wire)
    assert read(data) == [frame]
    reader = FrameReader(stream_data=True)
    parts = [reader.receive_data(data[at : at + 1]) for at in range(len(data))]
    assert parts == [[]] * (len(data) - 1) + [[frame]]
    reader = FrameReader(stream_data=True)
    assert reader.receive_data(data + b"\x10\x08\x00") == [frame]
    assert reader.receive_data(bytes(7)) == [Ping(0)]


def test_stream_frame_run_header_and_opening_are_as_the_diagrams_say() -> None:
    data = stream_header(9, 300, 5) + b"hello"
    assert data.hex() == "1a08" + "09" + "412c" + b"hello".hex()
    assert read(data + b"\x14\x00") == [StreamData(9, 300, b"hello"), Sync()]
    reader = FrameReader(stream_data=True)
    parts = [event for at in range(len(data)) for event in reader.receive_data(data[at : at + 1])]
    assert parts == [StreamData(9, 300 + at, b"hello"[at : at + 1]) for at in range(5)]
    assert run_header(9, 300).hex() == "09412c"
    assert opening("echo/1", 1).hex() == "0106" + b"echo/1".hex()


@pytest.mark.parametrize(("wire", "value"), RFC_9000_A1)
def test_integers_of_rfc_9000_appendix_a(wire: str, value: int) -> None:
    data = bytes.fromhex(wire)
    assert varint(value) == data
    assert read_varint(b"x" + data + b"y", 1) == (value, 1 + len(data))
    for end in range(len(data)):
        with pytest.raises(IndexError):
            read_varint(data[:end], 0)


def test_integer_longer_than_it_needs_to_be_is_read() -> None:
    assert read_varint(bytes.fromhex("4025"), 0) == (37, 2)


@pytest.mark.parametrize("value", [-1, VARINT_MAX + 1])
def test_integer_that_does_not_fit_is_not_written(value: int) -> None:
    with pytest.raises(ValueError, match=r"negative|62 bits"):
        varint(value)


@pytest.mark.parametrize("name", ["", "x" * 256, "\N{GREEK SMALL LETTER ALPHA}" * 128])
def test_opening_refuses_names_that_do_not_fit(name: str) -> None:
    with pytest.raises(ValueError, match="255"):
        opening(name, 1)


@pytest.mark.parametrize(
    "wire",
    [
        "1e00",  # an even type that nobody knows
        "40640101",  # the same, further away
        "1003000000",  # a PING of three bytes
        "1009" + "00" * 9,  # and one of nine
        "04020000",  # WINDOW without a limit
        "0404" + "00" * 4,  # WINDOW with one integer too many
        "140100",  # SYNC with a body
        "0e0140",  # GONE whose integer goes on behind its end
        "1800",  # CLOSE without a code
        "0001ff",  # HELLO cut short
        "0029" + "00" * 8 + FOUR_NAMES[16:] + "8001d4c00300105000",  # HELLO without a process
        "0029" + NAMES[:16] + "00" * 8 + FOUR_NAMES[32:] + "8001d4c00300105000",  # HELLO without an incarnation
        "0029" + NAMES[:32] + "00" * 8 + NAMES[32:] + "8001d4c00300105000",  # HELLO that knows only our incarnation
        "0029" + FOUR_NAMES[:48] + "00" * 8 + "8001d4c00300105000",  # HELLO that knows only our process
        "0029" + FOUR_NAMES + "8001d4c003000f5000",  # HELLO that grants 15 streams
        "0029" + FOUR_NAMES + "8001d4c00300104fff",  # HELLO that grants 4095 bytes
        "1a00",  # STREAM without a header
        "1a0100",  # STREAM without an offset
        "1a014000",  # STREAM whose id goes on behind its end
        "044401",  # a WINDOW of 1025 bytes: refused by its length
        "1c80010000",  # a datagram of 65,536 bytes
        "1a80040011",  # STREAM above its bound
    ],
)
def test_malformed_frame_is_a_violation(wire: str) -> None:
    with pytest.raises(ProtocolViolation) as caught:
        read(bytes.fromhex(wire))
    assert caught.value.code is CloseCode.FRAME_ERROR


@pytest.mark.parametrize("wire", ["1a0200ff", "1c0100"])
def test_stream_and_datagram_frames_do_not_belong_on_a_control_stream(wire: str) -> None:
    with pytest.raises(ProtocolViolation):
        read(bytes.fromhex(wire), stream_data=False)


def test_unknown_odd_type_is_skipped() -> None:
    assert read(bytes.fromhex("1f03aabbcc" + "1400")) == [Sync()]


def test_unknown_odd_types_cost_no_more_than_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer may send 262,144 of them in one wake-up of 512 KiB: no Enum is asked, no exception is made."""
    monkeypatch.setattr("overlay.protocol.frames.Type", None)
    assert read(b"\x1d\x00" * 1000 + encode(Sync())) == [Sync()]


def test_reason_is_clipped_between_characters() -> None:
    reason = "\N{GREEK SMALL LETTER ALPHA}" * MAX_REASON
    assert clip(reason) == reason[: MAX_REASON // 2].encode()
    assert clip("x" + reason)[-2:] == "\N{GREEK SMALL LETTER ALPHA}".encode()
    assert len(encode(Close(VARINT_MAX, reason))) <= MAX_CONTROL_BODY


@given(frame=frames)
def test_round_trip(frame: Control) -> None:
    assert read(encode(frame)) == [frame]


@given(
    stream=st.lists(
        frames | st.builds(StreamData, integers, st.integers(0, 2**60), st.binary(min_size=1, max_size=99))
    ),
    cuts=st.lists(st.integers(1, 60), min_size=1),
)
def test_however_it_is_cut_the_events_are_the_same(stream: list[Event], cuts: list[int]) -> None:
    data = b"".join(
        stream_header(event.stream, event.offset, len(event.data)) + event.data
        if isinstance(event, StreamData)
        else encode(event)
        for event in stream
    )
    reader = FrameReader(stream_data=True)
    events: list[Event] = []
    position = turn = 0
    while position < len(data):
        size = cuts[turn % len(cuts)]
        events += reader.receive_data(data[position : position + size])
        position += size
        turn += 1
    assert joined(events) == joined(stream)
    assert reader._pending == b""


def feed(data: bytes, size: int, *, stream_data: bool) -> None:
    """A value or a violation, never more pending than the bound."""
    reader = FrameReader(stream_data=stream_data)
    bound = (MAX_DATAGRAM if stream_data else MAX_CONTROL_BODY) + 16
    try:
        for at in range(0, len(data), size):
            reader.receive_data(data[at : at + size])
            assert len(reader._pending) <= bound
    except ProtocolViolation as violation:
        assert isinstance(violation.code, CloseCode)
        assert violation.reason


@given(data=st.binary(max_size=3000), size=st.integers(1, 100), stream_data=st.booleans())
def test_random_bytes_give_values_or_a_violation(data: bytes, size: int, stream_data: bool) -> None:
    feed(data, size, stream_data=stream_data)


CAPTURE = b"".join(bytes.fromhex(wire) for _, wire in GOLDEN) + stream_header(1, 2, 300) + bytes(300) + encode(Sync())


@given(
    changes=st.lists(st.tuples(st.integers(0, len(CAPTURE) - 1), st.integers(0, 255)), min_size=1, max_size=6),
    removed=st.tuples(st.integers(0, len(CAPTURE)), st.integers(0, 20)),
    size=st.integers(1, 400),
)
def test_mutated_capture_gives_values_or_a_violation(
    changes: list[tuple[int, int]], removed: tuple[int, int], size: int
) -> None:
    data = bytearray(CAPTURE)
    for at, value in changes:
        data[at] = value
    del data[removed[0] : sum(removed)]
    feed(bytes(data), size, stream_data=True)


@given(body=st.binary(max_size=80), kind=st.sampled_from([0, 2]))
def test_hello_and_accept_of_random_bodies(body: bytes, kind: int) -> None:
    feed(varint(kind) + varint(len(body)) + body, 1000, stream_data=False)


def test_datagram_that_trickles_in_is_held_up_to_its_bound_only() -> None:
    data = b"\x1c" + varint(MAX_DATAGRAM) + bytes(MAX_DATAGRAM)
    reader = FrameReader(stream_data=True)
    for at in range(0, len(data) - 1000, 1000):
        assert reader.receive_data(data[at : at + 1000]) == []
    assert len(reader._pending) <= MAX_DATAGRAM + 16


def test_stream_data_is_never_pending() -> None:
    reader = FrameReader(stream_data=True)
    reader.receive_data(b"\x1a" + varint(MAX_STREAM_BODY) + varint(1) + varint(0))
    for _ in range(100):
        assert reader.receive_data(bytes(1000))
        assert not reader._pending


def test_number_that_does_not_fit_is_an_error_at_our_side() -> None:
    with pytest.raises(ValueError, match="62 bits"):
        encode(Streams(2**62))
    with pytest.raises((OverflowError, struct.error)):
        encode(Hello(2**64, 1, 1, 1, 0, 0))
