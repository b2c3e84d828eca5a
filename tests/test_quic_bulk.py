"""What comes in bulk leaves the same state as with aioquic. What leaves: `test_quic_bulk_sending.py`."""

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import TypeVar

import pytest
from aioquic import tls
from aioquic.buffer import encode_uint_var
from aioquic.quic.events import StreamDataReceived
from aioquic.quic.recovery import MAX_ACK_RANGES
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from quic_twins import ELSEWHERE, FLIGHT, Pair, Ways, short_packet, written

from overlay.config import KiB
from overlay.transports.base import Role
from overlay.transports.quic import Engine

T = TypeVar("T")

OWN = Ways()
FAST = Ways(receiving=True, sending=True)

roles = st.sampled_from(Role)
seeds = st.integers(0, 255)
sides = st.booleans()
picks = st.integers(0, 1000)


def wide(value: int, width: int) -> bytes:
    """A variable-length integer in at least `width` bytes (RFC 9000 section 16: it need not be the shortest)."""
    width = max(width, len(encode_uint_var(value)))
    return (value | {1: 0, 2: 1, 4: 2, 8: 3}[width] << 8 * width - 2).to_bytes(width, "big")


@st.composite
def stream_frames(draw: st.DrawFn) -> bytes:
    """A STREAM frame, also one that aioquic would not write, or that is forbidden (RFC 9000 section 19.8)."""
    width = draw(st.sampled_from([1, 1, 2, 4, 8]))
    stream = draw(st.sampled_from([2, 3, 6, 7, 10, 11, 6, 7, 10, 11, 6, 7, 10, 11, 0, 1, 511, 515]))
    offset = draw(st.one_of(st.integers(0, 3000), st.sampled_from([0, 0, 64 * KiB, 1024 * KiB, 2**62 - 1])))
    size = draw(st.sampled_from([0, 1, 10, 500]))
    claimed = size + draw(st.sampled_from([0, 0, 0, 0, 0, 1]))
    data = draw(st.sampled_from([written(stream, offset % 2**20, size)] * 3 + [bytes(size)]))
    bits = draw(st.sampled_from([0, 2, 3, 4, 6, 6, 6, 6, 6, 7, 7]))
    frame = wide(8 | bits, draw(st.sampled_from([1, 1, 1, 1, 2]))) + wide(stream, width)
    frame += wide(offset, width) if bits & 4 else b""
    return frame + (wide(claimed, width) if bits & 2 else b"") + data


@st.composite
def ack_frames(draw: st.DrawFn) -> bytes:
    """An ACK frame, whether those packets were ever sent or not (RFC 9000 section 19.3)."""
    largest = draw(st.integers(0, 60))
    first = draw(st.integers(0, largest)) + draw(st.sampled_from([0] * 9 + [100]))
    ranges = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=4))
    values = [largest, draw(st.sampled_from([0, 10, 5000])), len(ranges), first, *(n for both in ranges for n in both)]
    counts = draw(st.sampled_from([b"", b"", b"\1\2\3"]))
    return bytes([3 if counts else 2]) + b"".join(map(encode_uint_var, values)) + counts


OTHERS = [b"\0", b"\1", b"\0\0\0", b"\x31\1x", b"\x10\x80\1\0\0", b"\x1f", b"\x12\1", b"\x40", b"\x02\1"]
"""PADDING, PING, DATAGRAM and MAX_DATA, a frame of no type, one that is not allowed, and pieces of some."""
payloads = st.lists(st.one_of(stream_frames(), stream_frames(), ack_frames(), st.sampled_from(OTHERS)), max_size=4)


def is_over(engine: Engine, stream_id: int) -> bool:
    """Whether aioquic takes no more data for a stream, as the peer wanted no more of it."""
    stream = engine._streams.get(stream_id)
    return engine._stream_is_discarded(stream_id) or (
        stream is not None and stream.sender._reset_error_code is not None
    )


class Machine(RuleBasedStateMachine):
    """What applications and networks do at any moment; after each step the near ends are equal."""

    receiving = (True, False)
    """How each near end receives."""

    @initialize(
        role=roles,
        seed=seeds,
        sending=st.booleans(),
        far=st.sampled_from([OWN, FAST]),
        rounds=st.integers(0, 20),
        size=st.sampled_from([3000, 30_000]),
    )
    def begin(self, role: Role, seed: int, sending: bool, far: Ways, rounds: int, size: int) -> None:
        sending &= any(self.receiving)
        self.pair = Pair(role, [Ways(way, sending) for way in self.receiving], far, seed=seed)
        self.to_near: list[bytes] = []
        self.to_far: list[bytes] = []
        self.runs: dict[bool, list[int]] = {True: [], False: []}
        self.sizes: Counter[tuple[bool, int]] = Counter()
        self.talk(rounds, size, 0.0, seed)

    def act(self, near: bool, action: Callable[[Engine], T]) -> T:
        return self.pair.each(lambda end: end.run(action)) if near else self.pair.far.run(action)

    def engine(self, near: bool) -> Engine:
        return (self.pair.near[0] if near else self.pair.far).engine

    @rule(near=sides, pick=st.integers(0, 4), size=st.sampled_from([0, 1, 30, 1200, 9000, 70_000]), end=st.booleans())
    def write(self, near: bool, pick: int, size: int, end: bool) -> None:
        runs = self.runs[near]
        if pick >= len(runs):
            runs.append(self.act(near, Engine.open_run))
            pick = len(runs) - 1
        run = runs[pick]
        ended = is_over(self.engine(near), run)
        if end or ended:
            runs.remove(run)
        if not ended:
            data = written(run, self.sizes[near, run], size)
            self.sizes[near, run] += size
            self.act(near, lambda engine: engine.write_run(run, data, end=end))

    @rule(near=sides, size=st.sampled_from([1, 100, 2000]), datagram=st.booleans())
    def write_frame(self, near: bool, size: int, datagram: bool) -> None:
        engine = self.engine(near)
        if datagram:
            self.act(near, lambda engine: engine.send_datagram_frame(bytes(min(size, engine.max_datagram))))
        elif not is_over(engine, engine._control_out):
            self.act(near, lambda engine: engine.send_control(bytes(size)))

    @rule(near=sides, pick=picks, what=st.sampled_from(["reset", "stop", "keys", "keys", "ping", "move"]))
    def disturb(self, near: bool, pick: int, what: str) -> None:
        engine, runs = self.engine(near), self.runs[near]
        if what == "keys":
            self.act(near, Engine.request_key_update)
        elif what == "ping":
            self.act(near, lambda engine: engine.send_ping(pick))
        elif what == "move" and engine._is_client:
            self.act(near, Engine.change_connection_id)
        elif what == "reset" and runs:
            run = runs.pop(pick % len(runs))
            self.act(near, lambda engine: engine.reset_stream(run, pick))
        elif what == "stop":
            coming = [run for run in engine._streams if run % 2 == engine._is_client]
            if coming:
                self.act(near, lambda engine: engine.stop_stream(coming[pick % len(coming)], pick))

    @rule(frames=payloads, skip=st.sampled_from([0] * 8 + [1, 200]), width=st.integers(1, 4), end=seeds)
    def craft(self, frames: list[bytes], skip: int, width: int, end: int) -> None:
        """The far end says what an honest one would not."""
        if not self.pair.far.engine.is_closing:
            payload = b"".join(frames)
            payload = payload[:end] if end < 9 else payload
            packet = short_packet(self.pair.far, payload[:1150], skip=skip, width=width, reserved=3 * (end == 255))
            self.to_near.append(packet)

    @rule(
        count=st.sampled_from([1, 2, 5, 50]),
        burst=st.sampled_from([True, True, False]),
        elsewhere=st.sampled_from([False] * 7 + [True]),
    )
    def deliver(self, count: int, burst: bool, elsewhere: bool) -> None:
        self.to_near += self.pair.far_send()
        arrived, self.to_near = self.to_near[:count], self.to_near[count:]
        self.pair.feed(arrived, burst=burst, remote=ELSEWHERE if elsewhere else None)

    @rule(count=st.sampled_from([1, 50]))
    def deliver_far(self, count: int) -> None:
        self.to_far += self.pair.send()
        arrived, self.to_far = self.to_far[:count], self.to_far[count:]
        self.pair.far_feed(arrived, burst=count > 1)

    @rule(pick=picks, other=picks, how=st.sampled_from(["lose", "swap", "repeat", "corrupt", "clip", "lose to far"]))
    def harm(self, pick: int, other: int, how: str) -> None:
        self.to_near += self.pair.far_send()
        queue = self.to_far if how == "lose to far" else self.to_near
        if not queue:
            return
        place = pick % len(queue)
        if how.startswith("lose"):
            del queue[place]
        elif how == "swap":
            queue.insert(other % len(queue), queue.pop(place))
        elif how == "repeat":
            queue.insert(other % len(queue), queue[place])
        elif how == "clip":
            # A short header ends at 11 bytes, and its sample at 29.
            queue[place] = queue[place][: 1 + other % min(len(queue[place]), 40)]
        else:
            damaged = bytearray(queue[place])
            damaged[other % len(damaged)] ^= 1 + pick % 255
            queue[place] = bytes(damaged)

    @rule(
        rounds=st.integers(1, 8),
        size=st.sampled_from([3000, 30_000]),
        loss=st.sampled_from([0.0, 0.1, 0.5]),
        seed=seeds,
    )
    def talk(self, rounds: int, size: int, loss: float, seed: int) -> None:
        """Several round trips at once, so that windows grow and acknowledgements have many ranges."""
        weather = Random(seed)
        for _ in range(rounds):
            self.write(weather.random() < 0.5, 0, size, end=weather.random() < 0.3)
            self.to_far += self.pair.send()
            self.to_near += self.pair.far_send()
            self.pair.wait(FLIGHT)
            for queue in (self.to_near, self.to_far):
                queue[:] = [data for data in queue if weather.random() >= loss]
                if loss:
                    weather.shuffle(queue)
            self.pair.feed(self.to_near, burst=True)
            self.pair.far_feed(self.to_far, burst=True)
            self.to_near, self.to_far = [], []
            self.pair.agree()
            self.read()

    @rule(seconds=st.sampled_from([0.0, 0.0003, 0.001, 0.005, 0.03, 0.3, 3.0]))
    def wait(self, seconds: float) -> None:
        self.pair.wait(seconds)

    @rule()
    def read(self) -> None:
        self.pair.events()
        self.pair.far.events()

    @rule(near=sides, sure=picks)
    def close(self, near: bool, sure: int) -> None:
        if 500 < sure < 600:
            self.act(near, lambda engine: engine.close(7, reason_phrase="enough"))

    @invariant()
    def near_ends_are_equal(self) -> None:
        if hasattr(self, "pair"):
            self.pair.agree()


class Alike(Machine):
    """Both near ends are aioquic's."""

    receiving = (False, False)


def explore(machine: type[Machine], examples: int, steps: int) -> None:
    health = [HealthCheck.too_slow, HealthCheck.data_too_large]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=health
        ),
    )


def test_twins_that_do_the_same_stay_equal() -> None:
    """What the other tests stand on."""
    explore(Alike, 15, 30)


def test_what_is_received_in_bursts_leaves_the_state_that_aioquic_would_leave() -> None:
    """Of packets, streams, credit, paths and timers; and of congestion control, for what was acknowledged."""
    explore(Machine, 60, 40)


def test_a_piece_of_a_datagram_does_not_harm_those_that_follow() -> None:
    """Whatever its length: anybody can send one, and many have less than a header is hidden with."""
    pair = Pair(Role.ACCEPTOR, [Ways(receiving=True), OWN], OWN)
    run = pair.far.run(Engine.open_run)
    for size in range(1, 60):
        pair.far.run(lambda engine: engine.write_run(run, bytes(1000), end=False))
        (datagram,) = pair.far_send()
        # Some that are all as short, then one behind a whole one.
        pair.feed([datagram[:size]] * 3, burst=True)
        pair.feed([datagram, datagram[:size]], burst=True)
        pair.agree()
        pair.wait(FLIGHT)
        pair.far_feed(pair.send())
        assert sum(len(event.data) for event in pair.events() if isinstance(event, StreamDataReceived)) == 1000


START_OF_RUN = b"\x0a\x06\x0a" + written(6, 0, 10)
ODD = {
    "nothing, at the end": [b"\x0e\x06\x0a\0"],
    "a frame behind it": [b"\x0e\x06\x0a\x05" + bytes(5) + b"\1"],
    "beyond a final size": [b"\x0f\x06\x14\x05" + bytes(5), b"\x0e\x06\x0a\x14" + bytes(20)],
    "beyond the final size, from where it is": [b"\x0f\x06\x0f\0", b"\x0e\x06\x0a\x0a" + bytes(10)],
    "what we send on": [b"\x0a\x03\x01x"],
    "a new run": [b"\x0a\x0a\x01x"],
}


@pytest.mark.parametrize("odd", ODD)
def test_what_is_odd_is_judged_by_aioquic(odd: str) -> None:
    """Right behind a packet that is not."""
    pair = Pair(Role.ACCEPTOR, [Ways(receiving=True), OWN], OWN)
    pair.each(lambda end: end.run(lambda engine: engine.send_control(b"x")))
    pair.feed([short_packet(pair.far, START_OF_RUN)])
    # Else an event without data would be joined with the one before it, and not be seen.
    pair.events()
    pair.feed([short_packet(pair.far, frame) for frame in ODD[odd]], burst=True)
    pair.agree()


@pytest.mark.parametrize("limit", ["of the stream", "of the connection", "reserved bits", "an old number", "elsewhere"])
def test_what_breaks_a_limit_is_judged_by_aioquic(limit: str) -> None:
    """In a packet that continues a run like any other."""
    pair = Pair(Role.ACCEPTOR, [Ways(receiving=True), OWN], OWN)
    pair.feed([short_packet(pair.far, START_OF_RUN)])
    for end in pair.near:
        if limit == "of the stream":
            end.engine._streams[6].max_stream_data_local = 15
        elif limit == "of the connection":
            end.engine._local_max_data.value = 15
    more = b"\x0e\x06\x0a\x0a" + written(6, 10, 10)
    packet = short_packet(pair.far, more, reserved=2 * (limit == "reserved bits"))
    if limit == "an old number":
        # The same number again with the next bytes: aioquic drops it.
        pair.feed([packet])
        pair.far.engine._packet_number -= 1
        packet = short_packet(pair.far, b"\x0e\x06\x14\x0a" + written(6, 20, 10))
    pair.feed([packet, packet], burst=True, remote=ELSEWHERE if limit == "elsewhere" else None)
    pair.agree()
    assert pair.near[0].engine.is_closing is (limit in {"of the stream", "of the connection", "reserved bits"})


def test_gaps_beyond_what_an_acknowledgement_can_say_are_forgotten_as_by_aioquic() -> None:
    """In what is received in one burst; packets out of order come behind it."""
    pair = Pair(Role.ACCEPTOR, [Ways(receiving=True), OWN], OWN)
    datagrams, late = [], []
    for count in range(200):
        frame = b"\x0e\x06" + wide(count * 10, 2) + b"\x0a" + written(6, count * 10, 10)
        datagrams.append(short_packet(pair.far, frame, skip=count % 3))
        late.append(short_packet(pair.far, b"\1"))
    pair.feed(datagrams, burst=True)
    pair.agree()
    assert len(pair.near[0].engine._spaces[tls.Epoch.ONE_RTT].ack_queue) == MAX_ACK_RANGES
    for pieces in (datagrams[::7], late[::3], late[::-5]):
        pair.feed(pieces, burst=True)
        pair.agree()
    pair.wait(FLIGHT)
    assert pair.send()
    assert pair.events() == [StreamDataReceived(written(6, 0, 2000), end_stream=False, stream_id=6)]


def test_the_spin_bit_is_that_of_the_last_packet() -> None:
    """RFC 9000 section 17.4."""
    pair = Pair(Role.ACCEPTOR, [Ways(receiving=True), OWN], OWN)
    pair.feed([short_packet(pair.far, START_OF_RUN)])
    for place, spin in ((10, True), (30, False)):
        pair.far.engine._spin_bit = spin
        first = short_packet(pair.far, b"\x0e\x06%c\x0a" % place + written(6, place, 10))
        pair.far.engine._spin_bit = not spin
        second = short_packet(pair.far, b"\x0e\x06%c\x0a" % (place + 10) + written(6, place + 10, 10))
        pair.feed([first, second], burst=True)
        pair.agree()


def test_what_comes_on_a_path_that_is_not_proven_counts_for_what_may_be_answered() -> None:
    """RFC 9000 section 8.1."""
    pair = Pair(Role.ACCEPTOR, [Ways(receiving=True), OWN], OWN)
    pair.feed([short_packet(pair.far, START_OF_RUN)])
    for end in pair.near:
        end.engine._network_paths[0].is_validated = False
    pair.feed([short_packet(pair.far, b"\x0e\x06\x0a\x0a" + written(6, 10, 10))] * 2, burst=True)
    pair.agree()
