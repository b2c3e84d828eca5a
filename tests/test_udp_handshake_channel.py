"""The reliable channel under the handshake: acknowledgements, losses, timers and bounds."""

import itertools

import pytest

from overlay.protocol.udp.handshake_channel import MAX_REMEMBERED, MAXIMUM_INTERVAL, WINDOW, Channel
from overlay.protocol.udp.handshake_packets import Header, Seal
from overlay.protocol.udp.payload import Close, encode_ack, encode_close
from overlay.protocol.udp.rtt import RoundTripTime
from overlay.protocol.udp.wire import ID_SIZE

ONE, OTHER, COOKIE = b"dialler!", b"acceptor", b"sixteen b cookie"
SIZE = 300


class Side:
    """A channel with what came out of it."""

    def __init__(self, seal: Seal, header: Header) -> None:
        self.rtt = RoundTripTime()
        self.channel = Channel(seal, header, self.rtt)
        self.events: list[bytes | Close] = []

    def receive(self, datagrams: list[bytes], now: float) -> int:
        return sum(self.channel.receive_datagram(datagram, now, self.events) for datagram in datagrams)

    def send(self, now: float) -> list[bytes]:
        return self.channel.datagrams_to_send(now, SIZE)

    @property
    def heard(self) -> bytes:
        return b"".join(event for event in self.events if isinstance(event, bytes))


@pytest.fixture
def sides() -> tuple[Side, Side]:
    return (
        Side(Seal.of_dialler(ONE, OTHER, COOKIE), Header(OTHER, ONE, COOKIE)),
        Side(Seal.of_acceptor(ONE, OTHER, COOKIE), Header(ONE, OTHER, b"")),
    )


def test_a_message_is_sent_once_acknowledged_at_once_and_measured(sides: tuple[Side, Side]) -> None:
    one, other = sides
    one.channel.write(bytes(500))
    packets = one.send(1.0)
    assert all(SIZE - 1 <= len(packet) <= SIZE for packet in packets[:-1])
    assert one.send(1.0) == []
    assert other.receive(packets, 1.1) == len(packets)
    assert other.heard == bytes(500)
    [acknowledgement] = other.send(1.1)
    assert other.send(1.1) == []
    one.receive([acknowledgement], 1.2)
    assert one.rtt.latest == pytest.approx(0.2)
    assert one.channel.next_timeout() is None
    # An acknowledgement is not acknowledged.
    assert one.send(1.2) == []


def test_the_cookie_is_shown_until_the_peer_was_heard(sides: tuple[Side, Side]) -> None:
    one, other = sides
    one.channel.write(b"first")
    [packet] = one.send(1.0)
    assert COOKIE in packet
    other.receive([packet], 1.0)
    one.receive(other.send(1.0), 1.0)
    one.channel.write(b"second")
    [packet] = one.send(1.0)
    assert COOKIE not in packet
    other.receive([packet], 1.0)
    assert other.heard == b"firstsecond"


def test_a_packet_three_behind_is_lost_at_once(sides: tuple[Side, Side]) -> None:
    one, other = sides
    one.channel.write(bytes(range(200)) * 5)
    packets = one.send(1.0)
    assert len(packets) >= 5
    other.receive(packets[1:4], 1.1)
    one.receive(other.send(1.1), 1.2)
    repeated = one.send(1.2)
    assert len(repeated) == 1
    other.receive(repeated + packets[4:], 1.3)
    assert other.heard == bytes(range(200)) * 5


def test_a_packet_just_behind_is_lost_after_nine_eighths_of_a_round_trip(sides: tuple[Side, Side]) -> None:
    one, other = sides
    one.channel.write(bytes(400))
    packets = one.send(1.0)
    assert len(packets) == 2
    other.receive(packets[1:], 1.1)
    one.receive(other.send(1.1), 1.2)
    assert one.send(1.2) == []
    due = one.channel.next_timeout()
    assert due is not None
    assert due == pytest.approx(1.0 + 0.2 * 9 / 8)
    one.channel.handle_timeout(1.21)
    assert one.send(1.21) == []
    one.channel.handle_timeout(due)
    assert len(one.send(due)) == 1


def test_without_an_answer_everything_is_sent_again_ever_more_rarely_up_to_a_bound(sides: tuple[Side, Side]) -> None:
    one, _ = sides
    one.channel.write(bytes(400))
    times = []
    now = 1.0
    for _ in range(8):
        assert len(one.send(now)) == 2
        times.append(now)
        due = one.channel.next_timeout()
        assert due is not None
        now = due
        one.channel.handle_timeout(now)
    timeout = one.rtt.probe_timeout
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses == pytest.approx([min(timeout * 2**number, MAXIMUM_INTERVAL) for number in range(7)])


def test_what_is_forgotten_after_many_repetitions_is_not_sent_twice_at_once(sides: tuple[Side, Side]) -> None:
    """A packet of long ago was declared lost when it was repeated; that it is forgotten says nothing about the copy."""
    one, _ = sides
    one.channel.write(bytes(400))
    now = 1.0
    for _ in range(MAX_REMEMBERED):
        assert len(one.send(now)) == 2
        due = one.channel.next_timeout()
        assert due is not None
        now = due
        one.channel.handle_timeout(now)


def test_a_late_acknowledgement_still_counts(sides: tuple[Side, Side]) -> None:
    """On a path with a round trip of 5 s the first packets are sent again before they can be acknowledged."""
    one, other = sides
    one.channel.write(b"hello")
    packets = one.send(1.0)
    one.channel.handle_timeout(2.1)
    packets += one.send(2.1)
    assert other.receive(packets[:1], 3.5) == 1
    one.receive(other.send(3.5), 6.0)
    assert one.rtt.latest == pytest.approx(5.0)
    assert one.channel.next_timeout() is None or one.send(6.0) == []


def test_no_more_than_a_window_is_under_way(sides: tuple[Side, Side]) -> None:
    one, other = sides
    message = bytes(range(250)) * 40
    one.channel.write(message)
    now = 1.0
    while other.heard != message:
        packets = one.send(now)
        assert 0 < len(packets) <= WINDOW
        other.receive(packets, now + 0.1)
        one.receive(other.send(now + 0.1), now + 0.2)
        now += 0.2


def test_who_is_asked_again_answers_again_without_waiting(sides: tuple[Side, Side]) -> None:
    """The answer was lost: the question comes again before our own timeout."""
    one, other = sides
    one.channel.write(b"question")
    other.receive(one.send(1.0), 1.1)
    other.channel.write(b"answer")
    assert other.send(1.1)
    one.channel.handle_timeout(2.1)
    other.receive(one.send(2.1), 2.2)
    one.receive(other.send(2.2), 2.3)
    assert one.heard == b"answer"


def test_repetitions_do_not_make_us_send_more_often_than_once_a_round_trip(sides: tuple[Side, Side]) -> None:
    one, other = sides
    one.channel.write(b"question")
    other.receive(one.send(1.0), 1.1)
    other.channel.write(bytes(1000))
    answer = other.send(1.1)
    for number in range(10):
        one.channel._lose_all()
        other.receive(one.send(1.2 + number / 1000), 1.2 + number / 1000)
    # Acknowledgements only.
    assert all(len(packet) < 60 for packet in other.send(1.25))
    assert len(answer) > 3


def test_a_packet_counts_once(sides: tuple[Side, Side]) -> None:
    one, other = sides
    one.channel.write(b"hello")
    packets = one.send(1.0)
    assert other.receive(packets * 3, 1.0) == 1
    assert other.heard == b"hello"


def test_an_acknowledgement_of_what_was_never_sent_is_ignored(sides: tuple[Side, Side]) -> None:
    one, _ = sides
    one.channel.write(b"hello")
    one.send(1.0)
    theirs = Seal.of_acceptor(ONE, OTHER, COOKIE)
    for number, ranges in enumerate([[(0, 1)], [(5, 2**61)], [(1, 1)]]):
        one.receive([theirs.seal(Header(ONE, OTHER, b""), number, encode_ack(0.0, ranges, 100))], 1.1)
    assert not one.rtt.measured
    assert one.channel.next_timeout() is not None


@pytest.mark.parametrize(
    "payload",
    [b"", b"\x0c\x00\x05ab", b"\xff", b"\x06data", b"\x0b", b"\x07" + bytes(8), b"\x03\x00\x01x", b"\x0c\x00\x01x\x0b"],
    ids=["empty", "cut", "unknown", "datagram", "done", "challenge", "control", "crypto and done"],
)
def test_a_packet_that_makes_no_sense_has_never_been(sides: tuple[Side, Side], payload: bytes) -> None:
    one, _ = sides
    theirs = Seal.of_acceptor(ONE, OTHER, COOKIE)
    assert one.receive([theirs.seal(Header(ONE, OTHER, b""), 0, payload)], 1.0) == 0
    assert not one.channel.heard
    assert one.send(1.0) == []
    assert one.receive([theirs.seal(Header(ONE, OTHER, b""), 0, b"\x01")], 1.0) == 1


@pytest.mark.parametrize("header", [Header(ONE, b"stranger", b""), Header(b"stranger", OTHER, b"")])
def test_packets_for_other_ids_are_not_ours(sides: tuple[Side, Side], header: Header) -> None:
    one, _ = sides
    assert len(header.source) == ID_SIZE
    assert one.receive([Seal.of_acceptor(ONE, OTHER, COOKIE).seal(header, 0, b"\x01")], 1.0) == 0


def test_a_goodbye_follows_what_tls_says(sides: tuple[Side, Side]) -> None:
    one, other = sides
    one.channel.write(b"alert")
    other.receive(one.channel.datagrams_to_send(1.0, SIZE, encode_close(0x15, "")), 1.0)
    assert other.events == [b"alert", Close(0x15, "")]


def test_what_is_remembered_is_bounded(sides: tuple[Side, Side]) -> None:
    one, other = sides
    one.channel.write(bytes(2500))
    now = 1.0
    for _ in range(100):
        one.send(now)
        now += 100.0
        one.channel.handle_timeout(now)
        assert len(one.channel._sent) <= MAX_REMEMBERED
    theirs = Seal.of_dialler(ONE, OTHER, COOKIE)
    for number in range(0, 4000, 2):
        other.receive([theirs.seal(Header(OTHER, ONE, COOKIE), number, b"\x01")], now)
        assert all(len(packet) <= SIZE for packet in other.send(now))
