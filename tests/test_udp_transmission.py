"""Payloads in, payloads out: what leaves when, and that whatever order things happen in, all arrives once.

Whole networks between two transmissions are in test_udp_simulation.py.
"""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from udp_ends import Coverage, FixedWindow, Packet, packets, pattern

from overlay.protocol.frames import ProtocolViolation
from overlay.protocol.udp.inbox import ControlData
from overlay.protocol.udp.mtu import MtuSearch
from overlay.protocol.udp.pacing import Pacer
from overlay.protocol.udp.payload import (
    DONE_FRAME,
    PING_FRAME,
    Close,
    Datagram,
    Done,
    FrameType,
    PathChallenge,
    StreamPiece,
    encode_ack,
    encode_challenge,
    read_frames,
)
from overlay.protocol.udp.transmission import Transmission
from overlay.protocol.udp.wire import DATA_OVERHEAD


def make(size: int = 1200, window: int = 64_000) -> Transmission:
    """Without a search for the MTU."""
    return Transmission(FixedWindow(size, window), Pacer(size), mtu=MtuSearch(size, size), initial_rtt=0.1)


def pass_on(sender: Transmission, receiver: Transmission, now: float) -> list[object]:
    found = packets(sender.payloads_to_send(now))
    receiver.receive([(packet.number, packet.payload) for packet in found], now)
    return list(receiver.take_events())


def test_everything_that_can_be_sent_arrives() -> None:
    one, two = make(), make()
    one.send_stream(5, 7, b"stream")
    one.send_control(b"control")
    assert one.send_datagram(b"datagram")
    assert one.send_frame(DONE_FRAME, again=True)
    events = pass_on(one, two, 1.0)
    assert StreamPiece(5, 7, b"stream") in events
    assert Datagram(b"datagram") in events
    assert Done() in events
    assert [event.data for event in events if isinstance(event, ControlData)] == [b"control"]
    assert pass_on(two, one, 1.01) == []
    assert one.recovery.in_flight == 0
    assert one.next_timeout() is None


def test_bulk_leaves_in_full_bursts() -> None:
    one = make(window=1 << 20)
    one.send_stream(5, 0, bytes(200_000))
    bursts = one.payloads_to_send(1.0)
    assert [len(burst.payloads) for burst in bursts[:-1]] == [54] * (len(bursts) - 1)
    assert {burst.size for burst in bursts} == {1200 - DATA_OVERHEAD}
    assert sum(len(burst.payloads) for burst in bursts) == -(-200_000 // 1165)


def test_window_holds_and_sendable_says_so() -> None:
    one = make(window=10_000)
    # Of an unknown path: what the window lets go, and two packets.
    assert one.sendable(1.0) == 10_000 + 2 * 1200
    one.send_stream(5, 0, bytes(10_000 + 2 * 1200))
    assert one.sendable(1.0) == 0
    assert len(packets(one.payloads_to_send(1.0))) == 8
    assert one.payloads_to_send(1.0) == []
    # What is missing to two packets is less than one: nobody is asked for so little.
    assert one.sendable(1.0) == 0


@pytest.mark.parametrize(("rate", "waiting"), [(10_000.0, 2400), (12.5e6, 25_000), (1e9, 256 * 1024)])
def test_what_waits_follows_the_rate(rate: float, waiting: int) -> None:
    """Two milliseconds of a fast path, two packets of a slow one."""
    congestion = FixedWindow(1200, 3000)
    congestion.pacing_rate = rate
    one = Transmission(congestion, Pacer(1200), mtu=MtuSearch(1200, 1200), initial_rtt=0.1)
    one.send_stream(5, 0, bytes(one.sendable(1.0)))
    one.payloads_to_send(1.0)
    # The rest of the window is less than a packet.
    left = one._flight.allowed(1.0)
    assert 0 <= left < 1200
    one.send_stream(5, 10_000_000, bytes(one.sendable(1.0)))
    assert abs(one._outbox.stream_bytes - left - waiting) < 1200


def test_amplification_limit_holds_and_causes_no_busy_loop() -> None:
    one, two = make(), make()
    pass_on(two, one, 0.9)
    two.send_frame(PING_FRAME, again=False)
    two.send_frame(PING_FRAME, again=False)
    pass_on(two, one, 1.0)
    one.send_stream(5, 0, bytes(100_000))
    found = packets(one.payloads_to_send(1.0, limit=3000))
    assert sum(map(len, found)) <= 3000
    due = one.next_timeout()
    assert due is not None
    assert due > 1.0
    one.handle_timeout(due)
    assert sum(map(len, packets(one.payloads_to_send(due, limit=0)))) == 0
    assert (one.next_timeout() or 0) > due


def test_probes_leave_although_the_window_is_full() -> None:
    one = make(window=2400)
    one.send_stream(5, 0, bytes(10_000))
    assert len(packets(one.payloads_to_send(1.0))) == 2
    for count in range(1, 4):
        due = one.next_timeout()
        assert due is not None
        one.handle_timeout(due)
        sizes = [len(packet) for packet in packets(one.payloads_to_send(due))]
        assert len(sizes) == 2
        assert one.recovery.probe_count == count


def test_second_of_two_timeouts_sends_a_small_packet_too() -> None:
    one = Transmission(FixedWindow(1200), Pacer(1200), mtu=MtuSearch(300, 1200), initial_rtt=0.1)
    one.mtu.size = 1200
    one.send_stream(5, 0, bytes(100_000))
    one.payloads_to_send(1.0)
    sizes = []
    for _ in range(3):
        due = one.recovery.next_timeout()
        assert due is not None
        one.handle_timeout(due)
        sizes.append([len(packet) for packet in packets(one.payloads_to_send(due))])
    assert sizes == [[1200, 1200], [300, 1200], [300, 1200]]


def test_probe_without_content_is_a_ping() -> None:
    one = make()
    one.send_datagram(b"x")
    one.payloads_to_send(1.0)
    due = one.next_timeout()
    assert due is not None
    one.handle_timeout(due)
    assert [packet.payload for packet in packets(one.payloads_to_send(due))] == [PING_FRAME] * 2


def test_ack_travels_with_data_if_there_is_any() -> None:
    one, two = make(), make()
    one.send_stream(5, 0, bytes(3000))
    pass_on(one, two, 1.0)
    two.send_control(b"x")
    [burst] = two.payloads_to_send(1.0)
    assert len(read_frames(burst.payloads[0])[0]) == 2
    assert two.payloads_to_send(1.0) == []


def test_ack_alone_is_not_congestion_controlled() -> None:
    one, two = make(), make(window=2400)
    two.send_stream(6, 0, bytes(10_000))
    two.payloads_to_send(1.0)
    one.send_stream(5, 0, bytes(3000))
    pass_on(one, two, 1.0)
    before = two.recovery.in_flight
    [burst] = two.payloads_to_send(1.0)
    assert burst.payloads[0][0] == FrameType.ACK
    assert two.recovery.in_flight == before


def test_lone_frames_and_the_close_are_not_remembered() -> None:
    one, two = make(), make()
    challenge = one.frame_alone(encode_challenge(FrameType.PATH_CHALLENGE, bytes(8)))
    goodbye = one.close(7, "why")
    for burst in (challenge, goodbye):
        two.receive(enumerate(burst.payloads, burst.first_number), 1.0)
    assert two.take_events() == [PathChallenge(bytes(8)), Close(7, "why")]
    assert one.recovery.in_flight == 0
    pass_on(two, one, 2.0)
    assert one.recovery.in_flight == 0


def test_datagram_that_is_too_long_is_dropped() -> None:
    one = make()
    assert one.max_datagram_size == 1200 - DATA_OVERHEAD - 1
    assert one.send_datagram(bytes(one.max_datagram_size))
    assert not one.send_datagram(bytes(one.max_datagram_size + 1))
    assert [len(packet) for packet in packets(one.payloads_to_send(1.0))] == [1200]


def test_ack_of_the_future_is_a_violation() -> None:
    with pytest.raises(ProtocolViolation):
        make().receive([(0, encode_ack(0.0, [(5, 5)], 100))], 1.0)


@given(st.data())
def test_changed_payloads_are_a_violation_or_do_no_harm(draw: st.DataObject) -> None:
    """An authenticated peer may send anything; what it gets is a coded close, and nobody else notices."""
    one, two = make(), make()
    for turn in range(draw.draw(st.integers(1, 4))):
        now = 1.0 + turn
        one.send_stream(5, turn * 3000, bytes(3000))
        one.send_control(b"control")
        two.send_control(b"answer")
        for sender, receiver in ((one, two), (two, one)):
            batch = []
            for packet in packets(sender.payloads_to_send(now)):
                payload = bytearray(packet.payload)
                for _ in range(draw.draw(st.integers(0, 2))):
                    payload[draw.draw(st.integers(0, min(40, len(payload) - 1)))] = draw.draw(st.integers(0, 255))
                batch.append((packet.number, bytes(payload[: draw.draw(st.sampled_from([2000, 2000, 2000, 30, 3]))])))
            try:
                receiver.receive(batch, now)
            except ProtocolViolation:
                receiver.close(1, "nonsense")
                return
            receiver.take_events()
            receiver.handle_timeout(now)
            assert receiver.recovery.in_flight >= 0


def test_silence_says_nothing_about_the_size_of_packets() -> None:
    """In a blackout the search waits: three probes lost would else hold it down for the ten minutes after."""
    one, two = make(), make()
    one.mtu = one._flight._mtu = MtuSearch(300)
    one.send_stream(5, 0, bytes(1000))
    sizes = [len(packet) for packet in packets(one.payloads_to_send(1.0))]
    assert 1200 in sizes
    while (due := one.next_timeout()) is not None and due < 40.0:
        one.handle_timeout(due)
        sent = packets(one.payloads_to_send(due))
        assert all(len(packet) <= 300 for packet in sent)
    two.receive([(packet.number, packet.payload) for packet in sent], 40.0)
    pass_on(two, one, 40.0)
    found = packets(one.payloads_to_send(40.1))
    assert 1200 in {len(packet) for packet in found}


def test_new_path_begins_with_small_packets() -> None:
    one = Transmission(FixedWindow(1200), Pacer(1200), mtu=MtuSearch(300), initial_rtt=0.1)
    one.mtu.size = 1200
    one.path_changed(1.0)
    assert one.mtu.size == 300
    one.mtu.probe_sent(1200, 1.0, 1.0)
    one.mtu_refused(1200)
    assert one.mtu.size == 300


class Exchange(RuleBasedStateMachine):
    """Any order of sending, loss, delay, doubling and time: what arrives is what was sent.

    Stream bytes at least once, control bytes once and in order, and at the end nothing is left in flight.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 1.0
        self.cores: list[Transmission] = []
        self.wires: list[list[Packet]] = [[], []]
        self.written: list[dict[int, int]] = [{}, {}]
        self.arrived: list[dict[int, Coverage]] = [{}, {}]
        self.said = [0, 0]
        self.heard = [0, 0]

    @initialize(window=st.sampled_from([900, 6000]), searches=st.booleans())
    def begin(self, window: int, searches: bool) -> None:
        """Without probes of the MTU nothing but the timers finds out that the last packet is lost."""
        for _ in (0, 1):
            mtu = MtuSearch(300, 700) if searches else MtuSearch(400, 400)
            self.cores.append(Transmission(FixedWindow(mtu.size, window), Pacer(mtu.size), mtu=mtu, initial_rtt=0.1))

    @rule(side=st.integers(0, 1), stream=st.integers(0, 3), size=st.integers(1, 3000))
    def write(self, side: int, stream: int, size: int) -> None:
        core = self.cores[side]
        start = self.written[side].get(stream, 0)
        if core.sendable(self.now) >= size:
            core.send_stream(stream, start, pattern(stream, start, size))
            self.written[side][stream] = start + size

    @rule(side=st.integers(0, 1), size=st.integers(1, 500))
    def say(self, side: int, size: int) -> None:
        self.cores[side].send_control(bytes(pattern(0, self.said[side], size)))
        self.said[side] += size

    @rule(side=st.integers(0, 1), size=st.integers(0, 300))
    def datagram(self, side: int, size: int) -> None:
        self.cores[side].send_datagram(bytes(size))

    @rule(side=st.integers(0, 1))
    def flush(self, side: int) -> None:
        self.wires[1 - side] += packets(self.cores[side].payloads_to_send(self.now))

    @rule(side=st.integers(0, 1), count=st.integers(1, 10))
    def deliver(self, side: int, count: int) -> None:
        batch, self.wires[side] = self.wires[side][:count], self.wires[side][count:]
        self._receive(side, batch)

    @rule(side=st.integers(0, 1), pick=st.randoms(use_true_random=False))
    def deliver_one_of_them(self, side: int, pick: Random) -> None:
        if self.wires[side]:
            self._receive(side, [self.wires[side].pop(pick.randrange(len(self.wires[side])))])

    @rule(side=st.integers(0, 1))
    def double(self, side: int) -> None:
        self.wires[side] += self.wires[side][:3]

    @rule(side=st.integers(0, 1), pick=st.randoms(use_true_random=False))
    def lose(self, side: int, pick: Random) -> None:
        self.wires[side] = [packet for packet in self.wires[side] if pick.random() < 0.6]

    @rule(seconds=st.sampled_from([0.001, 0.03, 0.2, 2.0]))
    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        for _ in range(1000):
            due = [(at, side) for side in (0, 1) if (at := self.cores[side].next_timeout()) is not None and at <= end]
            if not due:
                break
            at, side = min(due)
            self.now = max(self.now, at)
            self.cores[side].handle_timeout(self.now)
            self.flush(side)
        else:
            raise AssertionError("timers never come to rest")
        self.now = end

    @invariant()
    def bounds_hold(self) -> None:
        for core in self.cores:
            assert core.recovery.in_flight >= 0
            assert len(core.numbers) <= 64

    def teardown(self) -> None:
        for _ in range(400):
            for side in (0, 1):
                self.flush(side)
                batch, self.wires[1 - side] = self.wires[1 - side], []
                self._receive(1 - side, batch)
            self.wait(0.03)
            if not any(core.recovery.in_flight or core._outbox or core._inbox.ack_due() for core in self.cores):
                break
        else:
            raise AssertionError("the two never come to rest")
        for side in (0, 1):
            arrived = {stream: coverage.received for stream, coverage in self.arrived[1 - side].items()}
            assert arrived == self.written[side]
            assert self.heard[1 - side] == self.said[side]
            assert self.cores[side].control_waiting == 0
            assert self.cores[side].recovery.in_flight == 0

    def _receive(self, side: int, batch: list[Packet]) -> None:
        core = self.cores[side]
        self.now += 0.0005
        core.receive([(packet.number, packet.payload) for packet in batch if len(packet) <= 600], self.now)
        for event in core.take_events():
            if isinstance(event, StreamPiece):
                assert event.data == pattern(event.stream, event.offset, len(event.data))
                coverage = self.arrived[side].setdefault(event.stream, Coverage())
                coverage.add(event.offset, event.offset + len(event.data))
            elif isinstance(event, ControlData):
                assert event.data == pattern(0, self.heard[side], len(event.data))
                self.heard[side] += len(event.data)


TestExchange = Exchange.TestCase
TestExchange.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
