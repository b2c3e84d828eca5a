"""What leaves in bulk arrives once and in order, and is what aioquic would send."""

from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from random import Random

import aioquic
import pytest
from aioquic import tls
from aioquic.quic.events import StreamDataReceived
from aioquic.quic.packet import QuicProtocolVersion, QuicStreamFrame
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.stream import QuicStream
from hypothesis import given, settings
from hypothesis import strategies as st
from quic_twins import ADDRESSES, FLIGHT, End, Pair, Ways, drawing, written

from overlay.transports import quic_bulk
from overlay.transports.base import Role
from overlay.transports.quic import Engine
from overlay.transports.quic_bulk import KNOWN_VERSIONS
from overlay.transports.quic_recovery import PACING_TURN

OWN = Ways()
FAST = Ways(receiving=True, sending=True)
UNKNOWN = FAST._replace(bulk=False)
"""What a driver does when aioquic's version is unknown: the same calls."""

roles = st.sampled_from(Role)
seeds = st.integers(0, 255)


class Transfer:
    """Runs both ways between two ends over a link that loses and reorders; every flight is audited.

    Args:
        pair: with one near end.
        weather: what decides which datagrams are lost.
        loss: the share of them.
    """

    def __init__(self, pair: Pair, weather: Random, loss: float) -> None:
        self.pair = pair
        self._weather = weather
        self._loss = loss
        self.ends = {pair.near[0]: pair.far, pair.far: pair.near[0]}
        self._sizes: dict[End, Counter[int]] = {end: Counter() for end in self.ends}
        self._ended: dict[End, list[int]] = {end: [] for end in self.ends}
        self._read: dict[End, dict[int, bytes]] = {end: defaultdict(bytes) for end in self.ends}

    def write(self, end: End, run: int, size: int, *, last: bool) -> None:
        """Write on a run, or on the control stream, which has no end."""
        data = written(run, self._sizes[end][run], size)
        self._sizes[end][run] += size
        if run == end.engine._control_out:
            end.run(lambda engine: engine.send_control(data))
        else:
            end.run(lambda engine: engine.write_run(run, data, end=last))

    def flight(self) -> int:
        """Let both ends send, and what is not lost arrive; how many datagrams were sent."""
        flights = {end: self._send(end) for end in self.ends}
        sent = sum(map(len, flights.values()))
        if sent:
            self.pair.wait(FLIGHT)
        else:
            self.pair.wait_for_timer()
        for end, datagrams in flights.items():
            arrived = [data for data in datagrams if self._weather.random() >= self._loss]
            if self._loss and self._weather.random() < self._loss:
                self._weather.shuffle(arrived)
            other = self.ends[end]
            other.receive(arrived, ADDRESSES[end.role], self.pair.now, burst=True)
            for event in other.events():
                if isinstance(event, StreamDataReceived):
                    assert event.stream_id not in self._ended[other]
                    self._read[other][event.stream_id] += event.data
                    if event.end_stream:
                        self._ended[other].append(event.stream_id)
        return sent

    def arrives(self) -> bool:
        """Whether all that was written is there, and ended, and known to be."""
        return all(
            all(len(self._read[other][run]) == size for run, size in self._sizes[end].items())
            and not end.engine._loss.bytes_in_flight
            and all(run < 4 or stream.is_finished for run, stream in end.engine._streams.items())
            for end, other in self.ends.items()
        )

    def run(self) -> None:
        """Until all has arrived, which must be what was written."""
        for _ in range(10_000):
            if self.arrives():
                break
            self.flight()
        for end, other in self.ends.items():
            assert not end.engine.is_closing
            expected = {run: written(run, 0, size) for run, size in self._sizes[end].items() if size}
            assert {run: data for run, data in self._read[other].items() if data} == expected
            assert sorted(self._ended[other]) == [run for run in sorted(self._sizes[end]) if run > 3]

    def _send(self, end: End) -> list[bytes]:
        engine = end.engine
        loss, space = engine._loss, engine._spaces[tls.Epoch.ONE_RTT]
        limit = max(loss.congestion_window, loss.bytes_in_flight)
        if engine._probe_pending:
            limit = max(limit, loss.bytes_in_flight + engine.mtu)
        number = engine._packet_number
        quiet = not engine._ack_eliciting_sent_since_receipt
        left = engine._network_paths[0].bytes_sent
        sent = end.engine.congestion.sent
        datagrams = [data for data, _ in end.send(self.pair.now)]
        assert loss.bytes_in_flight <= limit
        packets = list(space.sent_packets.values())
        assert list(space.sent_packets) == sorted(packet.packet_number for packet in packets)
        new = [packet for packet in packets if packet.packet_number >= number]
        assert [packet.sent_bytes for packet in new] == list(map(len, datagrams))
        assert engine._packet_number == number + len(datagrams)
        assert engine.congestion.sent == sent + sum(packet.in_flight for packet in new)
        assert engine._network_paths[0].bytes_sent == left + sum(map(len, datagrams))
        assert loss.bytes_in_flight == sum(packet.sent_bytes for packet in packets if packet.in_flight)
        assert space.ack_eliciting_in_flight == sum(packet.is_ack_eliciting for packet in packets)
        if any(packet.is_ack_eliciting for packet in new):
            assert loss._time_of_last_sent_ack_eliciting_packet == self.pair.now
            assert engine._ack_eliciting_sent_since_receipt
            assert not quiet or engine._close_at == self.pair.now + engine._idle_timeout()
        streams = engine._streams
        assert engine._remote_max_data_used <= engine._remote_max_data
        assert engine._remote_max_data_used == sum(
            streams[run].sender.highest_offset if run in streams else size for run, size in self._sizes[end].items()
        )
        assert all(stream.sender.highest_offset <= stream.max_stream_data_remote for stream in streams.values())
        return datagrams


@settings(deadline=None, max_examples=60)
@given(
    role=roles,
    near=st.sampled_from([FAST, FAST, Ways(sending=True)]),
    far=st.sampled_from([OWN, FAST]),
    seed=seeds,
    loss=st.sampled_from([0.0, 0.02, 0.2]),
    runs=st.lists(
        st.tuples(
            st.booleans(),
            st.lists(st.sampled_from([0, 1, 900, 5000, 60_000, 200_000]), min_size=1, max_size=3),
        ),
        min_size=1,
        max_size=16,
    ),
)
def test_all_bytes_arrive_once_and_in_order_whatever_is_lost(
    role: Role, near: Ways, far: Ways, seed: int, loss: float, runs: list[tuple[bool, list[int]]]
) -> None:
    """Between an end with fast paths and one with or without; beside control frames, datagrams and new keys."""
    weather = Random(seed)
    transfer = Transfer(Pair(role, [near], far, seed=seed), weather, loss)
    ends = list(transfer.ends)
    for turned, sizes in runs:
        end = ends[turned]
        run = end.run(Engine.open_run)
        for place, size in enumerate(sizes):
            transfer.write(end, run, size, last=place == len(sizes) - 1)
            if weather.random() < 0.2:
                transfer.write(end, end.engine._control_out, 300, last=False)
                end.run(lambda engine: engine.send_datagram_frame(b"overtaking"))
                transfer.flight()
            if weather.random() < 0.1:
                end.run(Engine.request_key_update)
    transfer.run()


def acquainted(role: Role, *, seed: int = 0, flights: int = 10) -> tuple[Pair, int]:
    """Twins, the first of which sends in bulk from now on, and a run of theirs that has made the window wider."""
    pair = Pair(role, [Ways(sending=True), OWN], OWN, seed=seed)
    pair.near[0].ways = OWN
    run = pair.each(lambda end: end.run(Engine.open_run))
    for _ in range(flights):
        pair.each(lambda end: end.run(lambda engine: engine.write_run(run, bytes(9000), end=False)))
        sent = pair.send()
        pair.wait(FLIGHT)
        pair.far_feed(sent)
        pair.far.events()
        pair.wait(FLIGHT)
        pair.feed(pair.far_send())
    pair.agree()
    pair.near[0].ways = FAST
    # Nothing to acknowledge is due.
    for twin in pair.near:
        twin.engine._spaces[tls.Epoch.ONE_RTT].ack_at = None
    return pair, run


@settings(deadline=None, max_examples=60)
@given(
    role=roles,
    seed=seeds,
    sizes=st.lists(st.integers(1, 20_000), min_size=1, max_size=3),
    flights=st.sampled_from([0, 3, 40]),
    end=st.booleans(),
)
def test_one_plain_stream_leaves_byte_for_byte_as_by_aioquic(
    role: Role, seed: int, sizes: list[int], flights: int, end: bool
) -> None:
    """As far as the pacing of both goes; more flights before make the offsets long and the window wide."""
    pair, run = acquainted(role, seed=seed, flights=flights)
    for place, size in enumerate(sizes):
        last = end and place == len(sizes) - 1
        data = written(run, 0, size)
        for twin in pair.near:
            twin.engine.write_run(run, data, end=last)
    ours, theirs = (twin.send(pair.now) for twin in pair.near)
    count = min(len(ours), len(theirs))
    assert ours[:count] == theirs[:count]
    assert count or not (ours or theirs)


def lose_its_end(engine: Engine, stream: QuicStream) -> None:
    """The run's FIN, which left without data, and something from the middle."""
    sender = stream.sender
    assert sender.get_frame(2**20)
    engine.write_run(stream.stream_id or 0, b"", end=True)
    assert sender.get_frame(0) == QuicStreamFrame(fin=True, offset=sender.highest_offset)
    for place, stop, fin in (
        (sender._buffer_start, sender._buffer_start + 1300, False),
        (sender._buffer_stop,) * 2 + (True,),
    ):
        sender.on_data_delivery(QuicDeliveryState.LOST, place, stop, fin)


ChangeOf = Callable[[Engine, QuicStream], object]
CHANGES: dict[str, ChangeOf] = {
    "plain": lambda engine, stream: None,
    "the end of a run": lambda engine, stream: engine.write_run(stream.stream_id or 0, b"", end=True),
    "a lost end": lose_its_end,
    "a reset": lambda engine, stream: engine.reset_stream(stream.stream_id or 0, 1),
    "a blocked run": lambda engine, stream: setattr(stream, "is_blocked", True),
    "credit of the run": lambda engine, stream: setattr(
        stream, "max_stream_data_remote", stream.sender.highest_offset + 3000
    ),
    "credit of the connection": lambda engine, stream: setattr(
        engine, "_remote_max_data", engine._remote_max_data_used + 3000
    ),
    "new keys": lambda engine, stream: engine.request_key_update(),
    "a probe": lambda engine, stream: engine._send_probe(),
    "a path that is not proven": lambda engine, stream: setattr(engine._network_paths[0], "is_validated", False),
    "a handshake not confirmed": lambda engine, stream: unconfirm(engine),
    "no connection id": lambda engine, stream: setattr(engine._peer_cid, "cid", b""),
    "the longest connection id": lambda engine, stream: setattr(engine._peer_cid, "cid", bytes(20)),
    "AES-128": lambda engine, stream: other_keys(engine, tls.CipherSuite.AES_128_GCM_SHA256),
    "ChaCha20": lambda engine, stream: other_keys(engine, tls.CipherSuite.CHACHA20_POLY1305_SHA256),
}


def unconfirm(engine: Engine) -> None:
    """As if the handshake were not confirmed yet."""
    engine._handshake_confirmed = engine._loss.handshake_confirmed = False


def other_keys(engine: Engine, suite: tls.CipherSuite) -> None:
    """As if this had been negotiated."""
    keys = engine._cryptos[tls.Epoch.ONE_RTT].send
    keys.setup(cipher_suite=suite, secret=bytes(32), version=QuicProtocolVersion.VERSION_1)


@pytest.mark.parametrize("change", CHANGES)
def test_data_leaves_as_by_aioquic_whatever_is_odd(change: str) -> None:
    """Byte for byte, and with the same state behind it."""
    pair, run = acquainted(Role.DIALER)
    for twin in pair.near:
        engine = twin.engine
        # Window, credit and pacing let all go.
        engine.congestion.congestion_window = 200_000
        engine._remote_max_data += 2**20
        engine._loss._pacer.packet_time = None
        engine.write_run(run, written(run, 0, 5000), end=False)
        with drawing(Random(1)):
            CHANGES[change](engine, engine._streams[run])
    pair.send()
    pair.agree()


def test_what_is_paced_leaves_by_the_timer_alone_and_runs_take_turns() -> None:
    """A whole window within a round trip, a little at a time, without anything that comes meanwhile."""
    pair, run = acquainted(Role.DIALER)
    end = pair.near[0]
    loss = end.engine._loss
    window = end.engine.congestion.congestion_window = 60_000
    loss._pacer.update_rate(window, loss._rtt_smoothed)
    end.engine._remote_max_data += 2**20
    runs = [run, *(end.run(Engine.open_run) for _ in range(2))]
    for one in runs:
        end.engine.write_run(one, written(one, 0, 60_000), end=False)
    before = end.engine._streams[run].sender.highest_offset
    sent: list[int] = []
    now = last = pair.now
    while loss.bytes_in_flight + end.engine.mtu <= window:
        sent.append(len(end.send(now)))
        assert sent[-1]
        if len(sent) == len(runs):
            shares = [end.engine._streams[one].sender.highest_offset for one in runs]
            assert all(share > (before if one == run else 0) for one, share in zip(runs, shares, strict=True))
        last, now = now, end.engine.get_timer() or 0.0
    assert max(sent) * end.engine.mtu <= window * max(1 / 4, 2 * PACING_TURN / loss._rtt_smoothed)
    assert len(sent) > len(runs)
    assert last <= pair.now + loss._rtt_smoothed


def test_with_an_unknown_version_of_aioquic_everything_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same calls, and the fast paths unused."""
    assert aioquic.__version__ in KNOWN_VERSIONS
    assert Pair(Role.DIALER, [FAST], FAST).near[0].bulk_at_first
    monkeypatch.setattr(aioquic, "__version__", "1.7.99")
    pair = Pair(Role.DIALER, [UNKNOWN, OWN], UNKNOWN)
    assert not any(end.bulk_at_first for end in (*pair.near, pair.far))
    transfer = Transfer(Pair(Role.DIALER, [UNKNOWN], UNKNOWN), Random(0), 0.05)
    for end in transfer.ends:
        transfer.write(end, end.run(Engine.open_run), 300_000, last=True)
    transfer.run()


def test_no_key_seals_more_packets_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9001 section 6.6; with both ends changing theirs, also at the same time."""
    monkeypatch.setattr(quic_bulk, "KEY_PACKETS", 100)
    pair = Pair(Role.DIALER, [FAST], FAST)
    transfer = Transfer(pair, Random(0), 0.02)
    for end in transfer.ends:
        # Made before the limit was small.
        end.engine._new_keys_at = 100
        transfer.write(end, end.run(Engine.open_run), 700_000, last=True)
    keys = {end: [end.engine._cryptos[tls.Epoch.ONE_RTT].send.secret] for end in transfer.ends}
    sealed = {end: [end.engine._packet_number] for end in transfer.ends}
    while not transfer.arrives():
        transfer.flight()
        for end in transfer.ends:
            secret = end.engine._cryptos[tls.Epoch.ONE_RTT].send.secret
            if secret != keys[end][-1]:
                keys[end].append(secret)
                sealed[end].append(end.engine._packet_number)
    for end in transfer.ends:
        assert len(set(keys[end])) > 5
        # A flight is under way before the next one is looked at.
        assert max(after - before for before, after in pairwise(sealed[end])) <= 200
    transfer.run()
