"""The control stream: in order, each byte once, bounded on both sides."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import ProtocolViolation
from overlay.protocol.udp.control import (
    MAXIMUM_GAPS,
    MAXIMUM_PIECES,
    WINDOW,
    ControlOverflow,
    ControlReceiver,
    ControlSender,
)


def taken(sender: ControlSender, room: int) -> tuple[int, bytes]:
    piece = sender.take(room)
    assert piece is not None
    return piece[0], bytes(piece[1])


def test_bytes_leave_in_order_and_are_forgotten_when_heard() -> None:
    sender = ControlSender()
    sender.write(b"hello ")
    sender.write(b"world")
    assert taken(sender, 4) == (0, b"hell")
    assert taken(sender, 100) == (4, b"o world")
    assert not sender.ready
    assert sender.take(100) is None
    sender.acknowledged(4, 11)
    assert len(sender) == 11
    sender.acknowledged(0, 4)
    assert len(sender) == 0


def test_lost_piece_goes_first_and_may_be_cut_anew() -> None:
    sender = ControlSender()
    sender.write(b"abcdefgh")
    taken(sender, 6)
    sender.lost(0, 6)
    assert taken(sender, 4) == (0, b"abcd")
    assert taken(sender, 4) == (4, b"ef")
    assert taken(sender, 4) == (6, b"gh")


def test_piece_that_was_heard_after_all_is_not_sent_again() -> None:
    sender = ControlSender()
    sender.write(b"abcdef")
    taken(sender, 3)
    taken(sender, 3)
    sender.lost(0, 3)
    sender.lost(3, 6)
    sender.acknowledged(0, 3)
    assert taken(sender, 10) == (3, b"def")
    assert not sender.ready
    sender.acknowledged(3, 6)
    sender.lost(3, 6)
    assert not sender.ready


def test_sender_stays_within_the_window() -> None:
    sender = ControlSender()
    sender.write(bytes(2 * WINDOW))
    sent = 0
    while sender.ready:
        sent += len(taken(sender, 1000)[1])
    assert sent == WINDOW
    sender.acknowledged(0, 1000)
    assert taken(sender, 5000) == (WINDOW, bytes(1000))
    assert not sender.ready


def test_sender_has_a_limited_number_of_pieces_on_their_way() -> None:
    sender = ControlSender()
    for count in range(MAXIMUM_PIECES):
        sender.write(b"x")
        assert taken(sender, 10)[0] == count
    sender.write(b"x")
    assert not sender.ready
    sender.acknowledged(0, 1)
    assert sender.ready


def test_too_much_that_nobody_hears_is_an_overflow() -> None:
    sender = ControlSender(limit=100)
    sender.write(bytes(100))
    with pytest.raises(ControlOverflow):
        sender.write(b"x")


def test_receiver_puts_pieces_in_order() -> None:
    receiver = ControlReceiver()
    assert receiver.receive(3, b"def") == b""
    assert receiver.receive(3, b"def") == b""
    assert receiver.receive(8, b"i") == b""
    assert receiver.receive(0, b"abcd") == b"abcdef"
    assert receiver.receive(2, b"cde") == b""
    assert receiver.receive(6, memoryview(b"gh")) == b"ghi"
    assert receiver.receive(9, b"j") == b"j"


def test_bytes_beyond_the_window_are_a_violation() -> None:
    receiver = ControlReceiver()
    receiver.receive(0, b"ab")
    assert receiver.receive(2 + WINDOW - 1, b"x") == b""
    with pytest.raises(ProtocolViolation) as caught:
        receiver.receive(2 + WINDOW, b"x")
    assert caught.value.code == CloseCode.FLOW_CONTROL_ERROR


def test_too_many_gaps_are_a_violation() -> None:
    receiver = ControlReceiver()
    for gap in range(MAXIMUM_GAPS):
        receiver.receive(2 * gap + 1, b"x")
    with pytest.raises(ProtocolViolation) as caught:
        receiver.receive(2 * MAXIMUM_GAPS + 1, b"x")
    assert caught.value.code == CloseCode.FLOW_CONTROL_ERROR


@given(st.integers(0, 2**32), st.lists(st.integers(1, 400), max_size=60), st.integers(1, 300))
def test_all_bytes_arrive_once_and_in_order_whatever_the_network_does(seed: int, sizes: list[int], room: int) -> None:
    random = Random(seed)
    whole = random.randbytes(sum(sizes))
    sender, receiver = ControlSender(), ControlReceiver()
    position = 0
    for size in sizes:
        sender.write(whole[position : position + size])
        position += size
    got = b""
    under_way: list[tuple[int, bytes]] = []
    for _ in range(100_000):
        if not len(sender):
            break
        if sender.ready and random.random() < 0.5:
            under_way.append(taken(sender, random.randint(1, room)))
            continue
        if not under_way:
            assert sender.ready
            continue
        offset, data = under_way.pop(random.randrange(len(under_way)))
        fate = random.random()
        if fate < 0.3:
            sender.lost(offset, offset + len(data))
            continue
        got += receiver.receive(offset, data)
        if fate < 0.4:
            got += receiver.receive(offset, data)
        if fate < 0.5:
            # Declared lost although it has arrived; perhaps its ACK comes later, perhaps never.
            sender.lost(offset, offset + len(data))
            if fate < 0.45:
                sender.acknowledged(offset, offset + len(data))
        else:
            sender.acknowledged(offset, offset + len(data))
    assert got == whole
    assert not len(sender)
