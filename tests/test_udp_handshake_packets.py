"""HANDSHAKE packets: what is read is what was written, and nothing else opens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.udp.handshake_packets import OVERHEAD, Header, Seal
from overlay.protocol.udp.wire import HANDSHAKE, VERSION

ONE, OTHER, COOKIE = b"dialler!", b"acceptor", b"sixteen b cookie"


@pytest.mark.parametrize("cookie", [b"", COOKIE, bytes(255)])
def test_a_packet_opens_at_the_other_side_only(cookie: bytes) -> None:
    ours, theirs = Seal.of_dialler(ONE, OTHER, COOKIE), Seal.of_acceptor(ONE, OTHER, COOKIE)
    header = Header(OTHER, ONE, cookie)
    packet = ours.seal(header, 7, b"frames")
    assert len(packet) == OVERHEAD + len(cookie) + 6
    assert packet[:21] == bytes([HANDSHAKE]) + VERSION.to_bytes(4, "big") + OTHER + ONE
    assert Header.read(packet) == header
    assert theirs.open(packet, header) == (7, b"frames") == theirs.open(memoryview(packet), header)
    assert ours.open(packet, header) is None


def test_every_changed_bit_is_noticed() -> None:
    theirs = Seal.of_acceptor(ONE, OTHER, COOKIE)
    packet = Seal.of_dialler(ONE, OTHER, COOKIE).seal(Header(OTHER, ONE, COOKIE), 7, b"frames")
    for bit in range(8 * len(packet)):
        changed = (int.from_bytes(packet, "big") ^ 1 << bit).to_bytes(len(packet), "big")
        header = Header.read(changed)
        assert header is None or theirs.open(changed, header) is None
    for size in range(len(packet)):
        header = Header.read(packet[:size])
        assert header is None or theirs.open(packet[:size], header) is None


@pytest.mark.parametrize(
    ("one", "other", "cookie"),
    [(b"another!", OTHER, COOKIE), (ONE, b"another!", COOKIE), (ONE, OTHER, b""), (OTHER, ONE, COOKIE)],
)
def test_ids_and_cookie_make_the_keys(one: bytes, other: bytes, cookie: bytes) -> None:
    header = Header(OTHER, ONE, b"")
    packet = Seal.of_dialler(ONE, OTHER, COOKIE).seal(header, 0, b"frames")
    assert Seal.of_acceptor(one, other, cookie).open(packet, header) is None


@given(st.binary(max_size=400), st.booleans())
def test_garbage_is_no_packet(data: bytes, looks_right: bool) -> None:
    if looks_right:
        data = bytes([HANDSHAKE]) + VERSION.to_bytes(4, "big") + data
    header = Header.read(data)
    assert header is None or Seal.of_acceptor(ONE, OTHER, COOKIE).open(data, header) is None
