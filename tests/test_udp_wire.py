"""Packet headers: their first byte, their sizes, and packet numbers that travel cut to 32 bits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.udp import wire
from overlay.protocol.udp.cookie import CookieJar, knock
from overlay.protocol.udp.wire import full_number


@pytest.mark.parametrize(
    "kind", [wire.KNOCK, wire.COOKIE, wire.HANDSHAKE, wire.RESET, wire.DATA, wire.DATA | wire.KEY_PHASE]
)
def test_first_byte_is_neither_quic_nor_stun(kind: int) -> None:
    """RFC 9443 section 4: QUIC has 0x40 set, STUN begins with two zero bits."""
    assert kind & 0xC0 == 0x80


def test_types_of_packets_differ_in_more_than_the_key_phase() -> None:
    kinds = {wire.KNOCK, wire.COOKIE, wire.HANDSHAKE, wire.RESET}
    assert len(kinds) == 4
    assert wire.DATA not in {kind & ~wire.KEY_PHASE for kind in kinds}


def test_headers_are_as_long_as_the_diagram_says() -> None:
    assert wire.DATA_HEADER.size == 13
    assert wire.DATA_OVERHEAD == 29
    assert wire.KNOCK_HEADER.size == 13
    assert wire.HANDSHAKE_HEADER.size == 22
    assert wire.RESET_PACKET.size == 25
    assert wire.DATA_HEADER.pack(wire.DATA, bytes(range(8)), 0x01020304).hex() == "a0" + "0001020304050607" + "01020304"


def test_cookie_is_shorter_than_the_knock_that_causes_it() -> None:
    answer = CookieJar(bytes).answer_knock(knock(bytes(8)), b"address", 0.0)
    assert answer is not None
    assert len(answer) == 13 + 8 + 16 + 8
    assert len(answer) < wire.KNOCK_SIZE


@pytest.mark.parametrize(
    ("truncated", "largest", "number"),
    [
        (0, -1, 0),
        (1, -1, 1),
        (0, 0xFFFF_FFFF, 0x1_0000_0000),
        (5, 0xFFFF_FFFE, 0x1_0000_0005),
        (0xFFFF_FFF0, 0x1_0000_0001, 0xFFFF_FFF0),
        (0xFFFF_FFFF, 3, 0xFFFF_FFFF),
    ],
)
def test_number_is_completed_from_the_largest_received(truncated: int, largest: int, number: int) -> None:
    assert full_number(truncated, largest) == number


@given(largest=st.integers(-1, 2**62 - 2**32), distance=st.integers(-(2**31) + 2, 2**31))
def test_every_number_near_the_expected_one_is_found(largest: int, distance: int) -> None:
    number = largest + distance
    if number >= 0:
        assert full_number(number & 0xFFFF_FFFF, largest) == number
