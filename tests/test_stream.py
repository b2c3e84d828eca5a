"""The halves of a stream: offsets, ends, limits and violations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.buffers import MAX_GAPS
from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import VARINT_MAX, ProtocolViolation
from overlay.protocol.stream import Ending, ReceiveHalf, SendHalf, StreamCore


def sender(size: int, sent: int) -> SendHalf:
    half = SendHalf(1000)
    half.buffer.append(bytes(size))
    half.sent = half.highest = sent
    return half


def test_fin_occupies_one_offset() -> None:
    half = sender(10, 10)
    half.end(Ending.FIN)
    half.promised = True
    assert half.acknowledged(10)
    assert not half.done
    assert half.acknowledged(11)
    assert half.done


def test_acknowledgement_of_what_was_never_sent_is_a_violation() -> None:
    for promised, received in ((False, 6), (True, 11)):
        half = sender(10, 5)
        half.end(Ending.FIN)
        half.promised = promised
        with pytest.raises(ProtocolViolation) as caught:
            half.acknowledged(received)
        assert caught.value.code is CloseCode.FLOW_CONTROL_ERROR


def test_older_acknowledgement_is_no_news() -> None:
    half = sender(10, 10)
    assert half.acknowledged(7)
    assert not half.acknowledged(7)
    assert not half.acknowledged(3)
    assert half.acked == 7


def test_reset_ends_behind_what_was_sent_unless_a_fin_has_promised_more() -> None:
    half = sender(10, 4)
    half.end(Ending.RESET, 9)
    assert (half.final, half.unsent, len(half.buffer)) == (4, 0, 0)
    half = sender(10, 4)
    half.end(Ending.FIN)
    half.promised = True
    half.end(Ending.RESET, 9)
    assert half.final == 10
    assert half.acknowledged(11)
    assert half.done


def test_rewind_goes_back_to_what_is_acknowledged_and_a_late_acknowledgement_forward() -> None:
    half = sender(10, 10)
    half.acknowledged(3)
    half.rewind()
    assert (half.sent, half.available) == (3, 7)
    half.acknowledged(8)
    assert (half.sent, half.available) == (8, 2)
    half.waiting = True
    assert half.available == 0


@pytest.mark.parametrize("order", [("data", "fin"), ("fin", "data")])
def test_end_is_complete_with_all_bytes_in_either_order(order: tuple[str, str]) -> None:
    half = ReceiveHalf(100)
    for what in order:
        assert not half.complete
        if what == "data":
            half.insert(0, b"12345")
        else:
            assert half.end(Ending.FIN, 5)
    assert half.complete
    assert half.received == 6
    assert not half.end(Ending.FIN, 5)
    assert not half.end(Ending.RESET, 5)
    assert half.ending is Ending.FIN


@pytest.mark.parametrize(
    ("code", "offset", "data"),
    [(CloseCode.FLOW_CONTROL_ERROR, 99, b"xx"), (CloseCode.FINAL_SIZE_ERROR, 49, b"xx")],
)
def test_data_beyond_limit_or_end_is_a_violation(code: CloseCode, offset: int, data: bytes) -> None:
    half = ReceiveHalf(100)
    half.end(Ending.FIN, 50)
    with pytest.raises(ProtocolViolation) as caught:
        half.insert(offset, data)
    assert caught.value.code is code


@pytest.mark.parametrize(("highest", "first", "second"), [(5, 4, 4), (5, 6, 7), (0, VARINT_MAX, VARINT_MAX)])
def test_contradicting_ends_are_a_violation(highest: int, first: int, second: int) -> None:
    half = ReceiveHalf(100)
    half.insert(0, bytes(highest))
    with pytest.raises(ProtocolViolation) as caught:
        half.end(Ending.FIN, first)
        half.end(Ending.RESET, second)
    assert caught.value.code is CloseCode.FINAL_SIZE_ERROR


def test_too_many_gaps_are_a_violation() -> None:
    half = ReceiveHalf(10_000)
    for number in range(MAX_GAPS):
        half.insert(2 * number + 1, b"x")
    with pytest.raises(ProtocolViolation):
        half.insert(2 * MAX_GAPS + 1, b"x")


def test_reset_counts_as_received_and_drops_what_is_unread() -> None:
    half = ReceiveHalf(100)
    half.insert(0, b"12345")
    assert half.end(Ending.RESET, 50, 7)
    assert (half.received, len(half.buffer), half.code) == (51, 0, 7)
    assert not half.insert(10, b"late")


def test_limit_after_the_largest_reset_still_fits_on_the_wire() -> None:
    half = ReceiveHalf(100)
    half.end(Ending.RESET, VARINT_MAX - 1)
    assert half.received == VARINT_MAX
    assert half.next_limit == 100


def test_stopped_half_drops_what_comes() -> None:
    half = ReceiveHalf(100)
    half.insert(0, b"123")
    half.stop(1)
    half.insert(3, b"456")
    assert (len(half.buffer), half.buffer.consumed) == (0, 6)


def test_stream_is_done_when_both_ends_are_acknowledged_and_all_is_read() -> None:
    stream = StreamCore(0, local=True, send_limit=10, window=10)
    stream.sending.end(Ending.FIN)
    stream.sending.promised = True
    stream.receiving.insert(0, b"x")
    stream.receiving.end(Ending.FIN, 1)
    stream.sending.acknowledged(1)
    assert not stream.done
    stream.receiving.buffer.read(1)
    assert stream.done


@given(st.lists(st.tuples(st.integers(0, 120), st.integers(0, 30), st.sampled_from(["data", "fin", "reset"]))))
def test_whatever_comes_the_half_stays_consistent(steps: list[tuple[int, int, str]]) -> None:
    half = ReceiveHalf(100)
    for offset, size, what in steps:
        try:
            if what == "data":
                half.insert(offset, bytes(size))
            else:
                half.end(Ending.FIN if what == "fin" else Ending.RESET, offset)
        except ProtocolViolation:
            return
        assert half.ending is Ending.RESET or half.highest <= half.limit
        assert half.final is None or half.highest <= half.final
        assert half.buffer.consumed <= half.buffer.received
        assert half.complete == (half.final is not None and half.received == half.final + 1)
