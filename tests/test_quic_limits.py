"""Peers over QUIC that want more than their share: those who have proven a key, and strangers with much CRYPTO."""

import tracemalloc
from collections.abc import Callable

import pytest
from aioquic.quic.packet import QuicErrorCode
from quic_support import Node, Stranger, converse, memory_node, stranger_client
from transport_support import OURS, MemoryUdp, Recorder

from overlay.config import Config, KiB, Limits, MiB
from overlay.identity import Identity
from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import Ping, encode, run_header, varint
from overlay.transports.base import ClosedBy
from overlay.transports.lazy_timer import clock
from overlay.transports.quic import CONNECTION_WINDOW, FIRST_WINDOW, MAX_CRYPTO, REVIVAL, RUN_WINDOW, WINDOW_SHARE
from overlay.transports.quic_connection import QuicLink


def _greedy(bob: Node, udp: MemoryUdp) -> tuple[Stranger, Recorder]:
    """An authenticated client that knows no limits: neither ours nor those of congestion."""
    stranger = stranger_client(Identity.generate())
    converse(stranger, udp)
    stranger._remote_max_data = stranger._remote_max_stream_data_uni = 2**60
    stranger._remote_max_streams_uni = 2**50
    stranger._loss._cc.congestion_window = 2**40
    stranger._loss._pacer.next_send_time = lambda now: None  # type: ignore[method-assign,assignment,return-value]
    return stranger, bob.accepted[-1]


def _stream_frame(stream: int, offset: int, data: bytes) -> tuple[int, bytes]:
    return 0x0E, varint(stream) + varint(offset) + varint(len(data)) + data


def _healthy(bob: Node, udp: MemoryUdp) -> Callable[[], None]:
    """A second connection; the result checks that it still works."""
    stranger = stranger_client(Identity.generate())
    converse(stranger, udp)
    recorder = bob.accepted[-1]
    udp.sent.clear()

    def check() -> None:
        stranger.send_stream_data(2, encode(Ping(9)))
        udp.deliver(*stranger.output())
        assert recorder.frames == [Ping(9)]
        assert recorder.reason is None

    return check


async def test_a_peer_beyond_its_credit_is_closed_and_costs_little() -> None:
    """64 MiB on one run: closed at the window's end, with the error that QUIC has for it."""
    async with memory_node() as (bob, udp):
        bob.keep_data = False
        check = _healthy(bob, udp)
        stranger, recorder = _greedy(bob, udp)
        stranger.send_stream_data(6, run_header(0, 0) + bytes(64 * MiB))
        batch: list[bytes] = stranger.output()
        tracemalloc.start()
        try:
            for start in range(0, len(batch), 64):
                udp.deliver(*batch[start : start + 64])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert recorder.reason is not None
        assert (recorder.reason.by, recorder.reason.code) == (ClosedBy.US, CloseCode.FLOW_CONTROL_ERROR)
        assert recorder.received <= RUN_WINDOW
        assert peak < 4 * MiB
        for data in udp.sent:
            stranger.receive_datagram(data, OURS, clock())
        assert stranger._close_event is not None
        assert stranger._close_event.error_code == QuicErrorCode.FLOW_CONTROL_ERROR
        check()


async def test_holes_are_filled_at_most_up_to_the_connections_credit() -> None:
    """One byte far in a run makes a receiver hold all before it: a stranger's first window, and no more."""
    async with memory_node() as (bob, udp):
        check = _healthy(bob, udp)
        stranger, recorder = _greedy(bob, udp)
        tracemalloc.start()
        try:
            for number in range(100):
                frame = _stream_frame(6 + 4 * number, FIRST_WINDOW // 8 - 1, b"x")
                udp.deliver(stranger.packet(frame))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert recorder.reason is not None
        assert recorder.reason.code == CloseCode.FLOW_CONTROL_ERROR
        assert recorder.received == 0
        assert peak < 4 * FIRST_WINDOW
        check()


async def test_one_byte_at_the_end_of_a_run_is_refused_from_a_stranger() -> None:
    """Seven such packets would hold as many MiB."""
    async with memory_node() as (bob, udp):
        stranger, recorder = _greedy(bob, udp)
        udp.deliver(stranger.packet(_stream_frame(6, RUN_WINDOW - 1, b"x")))
        assert recorder.reason is not None
        assert recorder.reason.code == CloseCode.FLOW_CONTROL_ERROR


def _send_really(stranger: Stranger, udp: MemoryUdp, size: int, runs: int, first: int) -> None:
    """That much data, in order, in packets of 1 KiB, in `runs` runs from the `first`th on."""
    for number in range(first, first + runs):
        stream, done = 6 + 4 * number, 0
        while done < size // runs:
            udp.deliver(stranger.packet(_stream_frame(stream, done, bytes(KiB))))
            done += KiB


async def test_a_window_grows_with_what_was_really_sent() -> None:
    """Not with what a reset claims; up to the same as for those whom we dial; and all of it comes back."""
    async with memory_node() as (bob, udp):
        bob.keep_data = False
        stranger, recorder = _greedy(bob, udp)
        engine = recorder.connection._engine  # type: ignore[union-attr]
        reset = (0x04, varint(6) + varint(0) + varint(FIRST_WINDOW))
        udp.deliver(stranger.packet(reset))
        udp.deliver(stranger.packet((0x01, b"")))
        assert engine._window == FIRST_WINDOW
        _send_really(stranger, udp, CONNECTION_WINDOW, 16, 1)
        assert engine._window == CONNECTION_WINDOW
        assert engine._local_max_data.value - engine._handed_over <= CONNECTION_WINDOW
        assert bob.transport._windows.used == CONNECTION_WINDOW - FIRST_WINDOW
        recorder.connection.abort()  # type: ignore[union-attr]
        assert bob.transport._windows.used == 0


async def test_windows_share_what_there_is() -> None:
    """A few greedy peers cannot keep the others small, and together they stay below the bound."""
    limits = Limits(stranger_memory=WINDOW_SHARE * 4 * FIRST_WINDOW)
    async with memory_node(Config(limits=limits)) as (bob, udp):
        bob.keep_data = False
        windows = []
        for _ in range(8):
            stranger, recorder = _greedy(bob, udp)
            _send_really(stranger, udp, MiB, 2, 0)
            assert recorder.reason is None
            windows.append(recorder.connection._engine._window // FIRST_WINDOW)  # type: ignore[union-attr]
        assert windows[0] > windows[-1] > 1
        assert bob.transport._windows.used <= limits.stranger_memory


@pytest.mark.parametrize(
    "frame",
    [
        _stream_frame(6, RUN_WINDOW, b"x"),
        _stream_frame(6, 2**61, b"x"),
        _stream_frame(2 + 4 * 128, 0, b"x"),
        _stream_frame(0, 0, b"x"),
        (0x04, varint(6) + varint(0) + varint(2**40)),
    ],
    ids=["run", "far away", "streams", "bidirectional", "reset"],
)
async def test_no_limit_can_be_passed(frame: tuple[int, bytes]) -> None:
    """Streams, their length, their kind, and the size that a reset claims."""
    async with memory_node() as (bob, udp):
        check = _healthy(bob, udp)
        stranger, recorder = _greedy(bob, udp)
        udp.deliver(stranger.packet(frame))
        assert recorder.reason is not None
        assert (recorder.reason.by, recorder.reason.code) == (ClosedBy.US, CloseCode.FLOW_CONTROL_ERROR)
        check()


async def test_every_second_byte_is_too_many_fragments() -> None:
    """Each gap costs memory and a search."""
    async with memory_node() as (bob, udp):
        check = _healthy(bob, udp)
        stranger, recorder = _greedy(bob, udp)
        for start in range(0, 2000, 100):
            frames = [_stream_frame(6, 2 * number + 1, b"x") for number in range(start, start + 100)]
            udp.deliver(stranger.packet(*frames))
        assert recorder.reason is not None
        assert recorder.reason.code == CloseCode.FLOW_CONTROL_ERROR
        check()


async def test_what_a_reset_skipped_earns_credit_again() -> None:
    """Otherwise a peer with many resets would starve; its data is not held either."""
    async with memory_node() as (bob, udp):
        stranger, recorder = _greedy(bob, udp)
        engine = recorder.connection._engine  # type: ignore[union-attr]
        for number in range(20):
            stream = 6 + 4 * number
            reset = (0x04, varint(stream) + varint(0) + varint(FIRST_WINDOW // 2))
            udp.deliver(stranger.packet(_stream_frame(stream, 1000, b"x"), reset))
        assert recorder.reason is None
        assert engine._handed_over == 20 * FIRST_WINDOW // 2


@pytest.mark.parametrize(
    "frame",
    [
        (0x05, varint(3) + varint(0)),
        (0x04, varint(2) + varint(0) + varint(0)),
        (0x0F, varint(2) + varint(0) + varint(0)),
        (0x0F, varint(6) + varint(0) + varint(0)),
        _stream_frame(2, 0, b"\x00\x01\x00"),
    ],
    ids=["stop", "reset of control", "end of control", "empty run", "frame"],
)
async def test_what_our_protocol_has_no_use_for_closes_the_connection(frame: tuple[int, bytes]) -> None:
    """With an application's code, that the peer can read."""
    async with memory_node() as (bob, udp):
        check = _healthy(bob, udp)
        stranger, recorder = _greedy(bob, udp)
        connection = recorder.connection
        assert connection is not None
        connection.send_frame(encode(Ping(1)))
        connection.flush()
        udp.deliver(stranger.packet(frame))
        assert recorder.closed_calls == 1
        assert recorder.reason is not None
        assert recorder.reason.code in {CloseCode.STATE_ERROR, CloseCode.FRAME_ERROR}
        for data in udp.sent:
            stranger.receive_datagram(data, OURS, clock())
        assert stranger._close_event is not None
        assert stranger._close_event.frame_type is None
        assert stranger._close_event.error_code == recorder.reason.code
        check()


async def test_control_frames_that_nobody_reads_do_not_pile_up() -> None:
    """A peer that asks and does not listen."""
    async with memory_node() as (bob, udp):
        _, recorder = _greedy(bob, udp)
        connection = recorder.connection
        assert connection is not None
        sent = 0
        while not connection.is_closed:
            connection.send_frame(encode(Ping(1)))
            sent += 10
            assert sent < 3 * MiB
        await recorder.until(lambda: recorder.reason is not None)
        assert recorder.reason is not None
        assert recorder.reason.code == CloseCode.FLOW_CONTROL_ERROR


@pytest.mark.parametrize("offset", [MAX_CRYPTO, 500_000, 2**40])
async def test_crypto_from_a_stranger_is_bounded(offset: int) -> None:
    """aioquic alone would hold half a MiB of it for each stranger, and stretch a buffer to its end."""
    async with memory_node() as (bob, udp):
        check = _healthy(bob, udp)
        stranger = stranger_client()
        crypto = (0x06, varint(offset) + varint(800) + bytes(800))
        tracemalloc.start()
        try:
            udp.deliver(stranger.packet(crypto, (0x00, bytes(300)), early=True))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < MiB // 2
        for data in udp.sent:
            stranger.receive_datagram(data, OURS, clock())
        assert stranger._close_event is not None
        assert stranger._close_event.error_code == QuicErrorCode.CRYPTO_BUFFER_EXCEEDED
        await bob.gate.emptied()
        check()


async def test_crypto_in_crumbs_is_refused() -> None:
    """A handshake in every second byte makes each further one dearer."""
    async with memory_node() as (bob, udp):
        stranger = stranger_client()
        for start in range(0, 400, 100):
            crumbs = [(0x06, varint(2 * number + 1) + varint(1) + b"x") for number in range(start, start + 100)]
            udp.deliver(stranger.packet(*crumbs, (0x00, bytes(650)), early=True))
        for data in udp.sent:
            stranger.receive_datagram(data, OURS, clock())
        assert stranger._close_event is not None
        assert stranger._close_event.error_code == QuicErrorCode.CRYPTO_BUFFER_EXCEEDED
        await bob.gate.emptied()


async def test_crypto_after_the_handshake_is_bounded_too() -> None:
    """TLS has nothing to say any more."""
    async with memory_node() as (bob, udp):
        stranger, recorder = _greedy(bob, udp)
        udp.deliver(stranger.packet((0x06, varint(100_000) + varint(4) + b"more")))
        assert recorder.reason is not None
        assert recorder.reason.by is ClosedBy.US


async def test_only_a_packet_that_decrypts_counts_as_a_sign_of_life() -> None:
    """Anybody who sees a connection id can send datagrams with it; and to be heard is not yet to hear."""
    async with memory_node() as (bob, udp):
        stranger, recorder = _greedy(bob, udp)
        connection = recorder.connection
        assert isinstance(connection, QuicLink)
        engine = connection._engine
        before = engine.last_heard
        data = bytearray(stranger.packet((0x01, b""), (0x00, bytes(100))))
        data[-1] ^= 1
        udp.deliver(bytes(data))
        assert engine.last_heard == before
        connection.send_frame(encode(Ping(1)))
        connection.flush()
        progress = connection.last_progress()
        udp.deliver(stranger.packet((0x01, b""), (0x00, bytes(100))))
        assert engine.last_heard > before
        assert connection.last_progress() == progress, "our frame is not acknowledged"
        for _ in range(4):
            timer = engine.get_timer()
            assert timer is not None
            engine.handle_timer(timer)
            assert list(engine.bursts_to_send(timer))
        assert connection.last_progress() == progress, "a probe is no answer"


async def test_a_path_that_works_again_does_not_sit_out_the_backoff() -> None:
    """After a silence any packet that decrypts resets the probe timer's backoff; amid traffic it does not."""
    async with memory_node() as (bob, udp):
        stranger, recorder = _greedy(bob, udp)
        connection = recorder.connection
        assert isinstance(connection, QuicLink)
        engine = connection._engine
        engine._loss._pto_count = 6
        udp.deliver(stranger.packet((0x01, b""), (0x00, bytes(100))))
        assert engine._loss._pto_count == 6
        engine.last_heard -= 2 * REVIVAL
        udp.deliver(stranger.packet((0x01, b""), (0x00, bytes(100))))
        assert engine._loss._pto_count == 0
