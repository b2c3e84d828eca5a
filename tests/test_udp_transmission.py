"""Two transmissions and every network between them: always complete, always exact, never for ever."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from udp_ends import Coverage, End, FixedWindow, Packet, packets, pattern, transfer
from udp_network import Gilbert, Link, Network

from overlay.protocol.frames import ProtocolViolation
from overlay.protocol.udp.bbr import Bbr
from overlay.protocol.udp.congestion import Congestion
from overlay.protocol.udp.cubic import Cubic
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

MEGABYTE = 1_000_000
RATE = 6.25e6
"""50 Mbit/s."""

Change = Callable[[Network, Link, Link], None]


@dataclass(frozen=True)
class Scenario:
    """A network and what is sent over it."""

    name: str
    size: int = 2 * MEGABYTE
    rtt: float = 0.05
    mtu: int = 1472
    rate: float = RATE
    loss: float = 0.0
    gilbert: tuple[float, float] | None = None
    reorder: float = 0.0
    duplicate: float = 0.0
    back_loss: float | None = None
    """Of acknowledgements, where it differs."""
    change: Change | None = None
    until: float = 120.0
    packets: int = 20_000


def shrink(network: Network, there: Link, back: Link) -> None:
    for link in (there, back):
        network.change(0.4, link, mtu=500)
        network.change(1.2, link, mtu=300)
        network.change(2.5, link, mtu=1472)


def blackout(network: Network, there: Link, back: Link) -> None:
    network.blackout(0.3, 30.0, there, back)


def deaf(network: Network, there: Link, back: Link) -> None:
    network.blackout(0.3, 30.0, back)


SCENARIOS = [
    Scenario("nothing in the way"),
    Scenario("1 % loss", loss=0.01),
    Scenario("3 % loss", loss=0.03),
    Scenario("10 % loss", loss=0.1, size=MEGABYTE),
    Scenario("30 % loss", loss=0.3, size=MEGABYTE // 2, until=400),
    Scenario("bursts of loss, 5 packets each, 5 %", gilbert=(0.01, 0.2)),
    Scenario("1 % reordered by up to 50", reorder=0.01),
    Scenario("20 % reordered by up to 50", reorder=0.2),
    Scenario("30 % doubled", duplicate=0.3),
    Scenario("RTT 1 ms", rtt=0.001, size=5 * MEGABYTE),
    Scenario("RTT 1 s", rtt=1.0),
    Scenario("RTT 5 s", rtt=5.0, size=MEGABYTE),
    Scenario("RTT 5 s, 10 % loss", rtt=5.0, size=MEGABYTE // 10, loss=0.1, until=600),
    Scenario("MTU 300", mtu=300, size=MEGABYTE),
    Scenario("MTU 300, 64 kbit/s, 5 % loss", mtu=300, rate=8000, size=50_000, loss=0.05, until=300),
    Scenario("MTU 9000", mtu=9000, size=5 * MEGABYTE),
    Scenario("MTU 9000 -> 500 -> 300 -> 1472", mtu=9000, size=10 * MEGABYTE, change=shrink, packets=60_000),
    Scenario("blackout of 30 s", size=3 * MEGABYTE, change=blackout),
    Scenario("half of all ACKs lost", back_loss=0.5),
    Scenario("no ACK for 30 s", size=3 * MEGABYTE, change=deaf),
    Scenario(
        "everything at once", loss=0.05, reorder=0.1, duplicate=0.1, gilbert=(0.005, 0.3), size=MEGABYTE, until=400
    ),
]
CONTROLLERS: dict[str, Callable[[int], Congestion]] = {
    "cubic": Cubic,
    "bbr": lambda size: Bbr(size, Random(1).random),
}
rows: list[str] = []
"""The table of goodputs; a line for each scenario that was run."""


@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_transfer_is_complete_and_exact(scenario: Scenario, controller: str) -> None:
    network = Network(seed=7)
    link = partial(
        Link, rate=scenario.rate, delay=scenario.rtt / 2, queue=max(64_000, scenario.rate * scenario.rtt),
        mtu=scenario.mtu, reorder=scenario.reorder, duplicate=scenario.duplicate,
    )  # fmt: skip
    gilbert = scenario.gilbert
    there = link(loss=scenario.loss, gilbert=gilbert and Gilbert(*gilbert))
    back = link(
        loss=scenario.loss if scenario.back_loss is None else scenario.back_loss, gilbert=gilbert and Gilbert(*gilbert)
    )
    if scenario.change is not None:
        scenario.change(network, there, back)
    make = CONTROLLERS[controller]
    left, right = End(make(300)), End(make(300))
    result = transfer(
        left, right, network, there, back, size=scenario.size, until=scenario.until, packets=scenario.packets
    )
    rows.append(
        f"{scenario.name:36} {controller:6} {result.goodput / 1e6:7.3f} MB/s of {scenario.rate / 1e6:5.3f}"
        f" {result.seconds:7.2f} s {result.packets:6} packets, {left.core.recovery.lost_packets:5} lost,"
        f" MTU {left.core.mtu.size}"
    )
    # Needless copies are what a delay or a lost ACK costs; they have a bound.
    assert right.bytes_received <= 1.25 * scenario.size
    assert left.core.mtu.size <= scenario.mtu


def test_table_of_goodputs_has_a_line_for_each_run(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print("", *rows, sep="\n")  # noqa: T201 - it is what CI shows
    assert all("MB/s" in row for row in rows)


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
    assert one.sendable(1.0) == 256 * 1024
    one.send_stream(5, 0, bytes(256 * 1024))
    assert one.sendable(1.0) == 0
    assert len(packets(one.payloads_to_send(1.0))) == 8
    assert one.payloads_to_send(1.0) == []
    assert one.sendable(1.0) == 8 * 1165


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


def test_progress_is_the_last_ack_or_the_oldest_packet() -> None:
    one, two = make(), make()
    assert one.last_progress() is None
    one.send_control(b"x")
    pass_on(one, two, 1.0)
    assert one.last_progress() == 1.0
    assert two.last_progress() == 1.0
    pass_on(two, one, 1.2)
    assert one.last_progress() is not None
    one.send_control(b"y")
    pass_on(one, two, 9.0)
    assert one.last_progress() == 9.0


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
