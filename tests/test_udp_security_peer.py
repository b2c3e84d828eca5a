"""A peer that has proven its key and does what it likes: nothing raises, and what breaks a rule ends with a code."""

from hypothesis import given, settings
from hypothesis import strategies as st
from udp_network import Link
from udp_peers import World

from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import VARINT_MAX, varint
from overlay.protocol.udp.connection import Closed
from overlay.protocol.udp.payload import encode_ack, encode_close, encode_new_id
from overlay.protocol.udp.transmission import Burst

CODES = {CloseCode.FRAME_ERROR, CloseCode.STATE_ERROR, CloseCode.FLOW_CONTROL_ERROR}
numbers = st.integers(0, 5) | st.integers(0, 2000) | st.integers(0, VARINT_MAX)
data = st.binary(min_size=1, max_size=40)


def piece(kind: bytes) -> st.SearchStrategy[bytes]:
    """CONTROL, STREAM with a length, CRYPTO: any offset, mostly a true length."""
    stream = numbers.map(varint) if kind == b"\x05" else st.just(b"")
    return st.builds(
        lambda first, offset, body, more: kind + first + varint(offset) + varint(len(body) + more) + body,
        stream,
        numbers,
        data,
        st.sampled_from([0, 0, 0, 1]),
    )


frames = st.one_of(
    st.binary(min_size=1, max_size=60),
    piece(b"\x03"),
    piece(b"\x05"),
    piece(b"\x0c"),
    st.builds(lambda stream, offset, body: b"\x04" + varint(stream) + varint(offset) + body, numbers, numbers, data),
    st.builds(lambda low, size: encode_ack(0.0, [(low, min(low + size, VARINT_MAX))], 100), numbers, st.integers(0, 9)),
    st.builds(lambda low: encode_ack(0.0, [(low + 9, low + 10), (low, low + 1)], 100), st.integers(0, 20)),
    st.builds(encode_new_id, numbers, st.binary(min_size=8, max_size=8), st.binary(min_size=16, max_size=16)),
    st.sampled_from([b"\x00", b"\x01", b"\x0b", b"\x06", b"\x07" + bytes(8), b"\x08" + bytes(8), b"\x0d", b"\xff"]),
    st.builds(lambda code: encode_close(code, "enough"), numbers),
)
whole = st.lists(frames, max_size=4).map(b"".join)
payloads = whole | st.builds(lambda payload, cut: payload[:-cut], whole, st.integers(1, 30))


class Unchecked(World):
    """What arrives is whatever it is: only that it is taken in, or refused, counts."""

    def __init__(self) -> None:
        super().__init__(Link(delay=0.025), Link(delay=0.025))
        self.open().quiet()
        core = self.acceptor.one
        core.batch_ended(self.now)
        core.take_events()

    def seal(self, payload: bytes) -> bytes:
        """A packet of the dialler's, with its keys and next number."""
        flight = self.dialler.established.transmission._flight
        flight.next_number += 1
        return self.dialler.established._seal(Burst(flight.next_number - 1, [payload], len(payload)), "acceptor").data


@settings(max_examples=150)
@given(st.lists(st.tuples(payloads, st.booleans()), min_size=1, max_size=12))
def test_whatever_a_peer_seals_is_taken_or_refused_with_a_code(packets: list[tuple[bytes, bool]]) -> None:
    """From where it is or from elsewhere; once refused, nothing more is taken, and the goodbye names the reason."""
    world = Unchecked()
    core = world.acceptor.one
    closed: list[Closed] = []
    before = len(core.ids)
    for payload, elsewhere in packets:
        core.receive_datagram(world.seal(payload), "elsewhere" if elsewhere else "dialler", world.now)
        core.batch_ended(world.now)
        assert not closed or not core.take_events()
        closed += [event for event in core.take_events() if isinstance(event, Closed)]
        sent = core.bursts_to_send(world.now)
        assert sum(len(one.data) for one in sent if one.address == "elsewhere") <= 3 * sum(
            len(payload) + 29 for payload, _ in packets
        )
        assert len(core.ids) <= before + 1
    if not closed:
        assert not core.is_closing
        return
    [end] = closed
    if end.by == "us":
        assert end.code in CODES
        assert end.reason
    else:
        assert end.by == "peer"
        assert (end.reason, core.bursts_to_send(world.now)) == ("enough", [])
    core.handle_timeout(world.now + 60.0)
    assert core.is_over
    assert core.next_timeout() is None


def test_a_peer_that_updates_its_keys_with_every_packet_is_followed_or_stopped() -> None:
    """Each update costs it more than us, and an update before anything of ours could be acknowledged ends it."""
    world = World().open().quiet()
    dialler, core = world.dialler, world.acceptor.one
    for _ in range(20):
        dialler.protection._seal_with(dialler.protection._sending.following())
        number = dialler.established.transmission.frame_alone(b"\x01")
        sealed = dialler.established._seal(number, "acceptor")
        core.receive_datagram(sealed.data, "dialler", world.now)
        core.batch_ended(world.now)
        if core.is_closing:
            break
    [closed] = [event for event in core.take_events() if isinstance(event, Closed)]
    assert (closed.code, closed.by) == (CloseCode.STATE_ERROR, "us")
    assert world.acceptor.protection.generation <= 2
