"""The bytes of a handshake against a model: however they are cut, lost and doubled, they arrive once and in order."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.udp.crypto_stream import MAX_CRYPTO, IncomingCrypto, OutgoingCrypto


def test_bytes_are_taken_in_order_and_lost_ones_first() -> None:
    out = OutgoingCrypto()
    assert out.take(100) is None
    assert out.is_delivered
    out.write(b"abcdefgh")
    assert out.take(3) == (0, b"abc")
    assert out.take(3) == (3, b"def")
    out.lose(0, 3)
    assert out.take(2) == (0, b"ab")
    assert out.take(100) == (2, b"c")
    assert out.take(100) == (6, b"gh")
    assert out.take(100) is None
    out.acknowledge(0, 6)
    assert not out.is_delivered
    out.lose(0, 8)
    assert out.take(100) == (6, b"gh")
    out.acknowledge_all()
    assert out.is_delivered
    assert out.take(100) is None


@pytest.mark.parametrize("room", [0, -5])
def test_without_room_nothing_is_taken(room: int) -> None:
    out = OutgoingCrypto()
    out.write(b"abc")
    assert out.take(room) is None


def test_pieces_are_put_in_order_and_known_ones_are_recognised() -> None:
    come = IncomingCrypto()
    assert come.receive_piece(3, b"def") == b""
    assert come.receive_piece(3, b"def") is None
    assert come.receive_piece(4, b"e") is None
    assert come.receive_piece(2, memoryview(b"cde")) == b""
    assert come.receive_piece(0, b"ab") == b"abcdef"
    assert come.receive_piece(0, b"abcdef") is None
    assert come.receive_piece(5, b"fg") == b"g"


def test_what_lies_beyond_the_bound_is_dropped() -> None:
    come = IncomingCrypto()
    assert come.receive_piece(MAX_CRYPTO, b"x") is None
    assert come.receive_piece(2**62 - 2, b"x") is None
    assert come.receive_piece(MAX_CRYPTO - 1, b"x") == b""
    assert len(come._data) == len(come._flags) == MAX_CRYPTO


@given(st.integers(0, 2**32), st.integers(1, 3000))
def test_everything_arrives_exactly_whatever_the_network_does(seed: int, size: int) -> None:
    chance = random.Random(seed)
    message = chance.randbytes(size)
    out, come = OutgoingCrypto(), IncomingCrypto()
    written, received = 0, b""
    flying: list[tuple[int, bytes]] = []
    while len(received) < size or not out.is_delivered:
        if written < size:
            part = chance.randint(1, size)
            out.write(message[written : written + part])
            written += part
        if (piece := out.take(chance.randint(1, 400))) is not None:
            flying.append(piece)
        if flying and chance.random() < 0.7:
            offset, data = flying.pop(chance.randrange(len(flying)))
            if chance.random() < 0.3:
                out.lose(offset, offset + len(data))
                continue
            for _ in range(chance.randint(1, 2)):
                received += come.receive_piece(offset, data) or b""
            if chance.random() < 0.7:
                out.acknowledge(offset, offset + len(data))
            else:
                out.lose(offset, offset + len(data))
    assert received == message
