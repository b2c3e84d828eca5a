"""QUIC between two of ours: connections, runs, credit, closing, retry, over loopback and in memory."""

import asyncio
import errno
import os
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from quic_support import Node, connect, memory_node, node, stranger_client
from transport_support import Recorder, bound_socket

from overlay.addresses import Address
from overlay.config import Config, Limits
from overlay.errors import DatagramTooLarge, HandshakeError, SelfDial
from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import Close, Ping, encode
from overlay.transports.base import ClosedBy, CloseReason, Connection, Role


async def test_both_sides_learn_the_proven_key() -> None:
    """And where the other is."""
    async with node() as alice, node() as bob:
        link, _, arrival = await connect(alice, bob)
        other = arrival.connection
        assert other is not None
        assert (link.peer_id, link.role) == (bob.peer_id, Role.DIALER)
        assert (other.peer_id, other.role) == (alice.peer_id, Role.ACCEPTOR)
        assert link.remote == bob.address
        assert other.remote == alice.address
        assert link.local == alice.address
        assert bob.gate.entered == 1
        assert bob.gate.pending == 0
        assert link.rtt is not None
        assert link.rtt_min is not None
        assert 0 < link.rtt_min < 1.0
        assert link.probe_timeout is not None
        assert link.last_progress() > 0


async def test_frames_streams_and_datagrams_go_both_ways() -> None:
    """The first answer of an acceptor needs no prompting."""
    async with node() as alice, node() as bob:
        link, recorder, arrival = await connect(alice, bob)
        for connection in (link, arrival.connection):
            assert connection is not None
            connection.send_frame(encode(Ping(7)))
            connection.send_stream(5, 1000, b"hello", idle=True)
            assert connection.send_datagram(b"d" * connection.max_datagram_size)
            connection.flush()
        for got in (recorder, arrival):
            await got.until(lambda got=got: bool(got.frames and got.streams and got.datagrams))  # type: ignore[misc]
            assert got.frames == [Ping(7)]
            assert got.streams[5][1000:] == b"hello"
            assert len(got.datagrams[0]) == link.max_datagram_size
        assert link.bytes_sent == link.bytes_received > 5


async def test_a_datagram_that_is_too_long_is_refused_at_once() -> None:
    """aioquic would keep it for ever, and all later ones behind it; and only so many may wait."""
    async with node() as alice, node() as bob:
        link, _, _ = await connect(alice, bob)
        with pytest.raises(DatagramTooLarge):
            link.send_datagram(bytes(link.max_datagram_size + 1))
        taken = sum(link.send_datagram(b"x") for _ in range(1000))
        assert 0 < taken < 1000


def _pump(total: int, streams: int, piece: int) -> Any:
    """A session's sender: round robin over streams, as much as is taken."""
    offsets = dict.fromkeys(range(streams), 0)
    data = memoryview(bytes(range(256)) * 256)

    def pump(connection: Connection) -> None:
        while offsets:
            stream, offset = next(iter(offsets.items()))
            room = connection.sendable()
            if room <= 0:
                return
            size = min(room, piece, total - offset, 65536 - offset % 256)
            del offsets[stream]
            start = offset % 256
            connection.send_stream(stream, offset, data[start : start + size], idle=offset + size == total)
            if offset + size < total:
                offsets[stream] = offset + size

    return pump


@pytest.mark.parametrize(("total", "streams", "piece"), [(3_000_000, 1, 65536), (40_000, 100, 1000), (7, 1000, 7)])
async def test_streams_arrive_whole(total: int, streams: int, piece: int) -> None:
    """More streams than QUIC allows at once, more bytes than one run or the first credit has."""
    async with node() as alice, node() as bob:
        link, recorder, arrival = await connect(alice, bob)
        recorder.on_writable = _pump(total, streams, piece)
        recorder.on_writable(link)
        link.flush()
        await arrival.until(lambda: arrival.received >= total * streams)
        expected = (bytes(range(256)) * (total // 256 + 1))[:total]
        assert arrival.received == total * streams
        assert len(arrival.streams) == streams
        assert all(data == expected for data in arrival.streams.values())
        engine = arrival.connection._engine  # type: ignore[union-attr]
        assert len(engine._streams) <= 130
        assert len(arrival.connection._incoming) == 0  # type: ignore[union-attr]


async def test_credit_follows_what_was_handed_over() -> None:
    """After 20 MiB the connection's credit is 4 to 8 MiB beyond them, and no run got more than its window."""
    async with node() as alice, node() as bob:
        bob.keep_data = False
        link, recorder, arrival = await connect(alice, bob)
        total = 20 * 1024 * 1024
        recorder.on_writable = _pump(total, 1, 65536)
        recorder.on_writable(link)
        link.flush()
        await arrival.until(lambda: arrival.received >= total)
        engine = arrival.connection._engine  # type: ignore[union-attr]
        ahead = engine._local_max_data.value - engine._handed_over
        assert 4 * 1024 * 1024 <= ahead <= 8 * 1024 * 1024


async def test_the_control_stream_gets_credit_as_it_is_read() -> None:
    """More frames than its first window holds."""
    async with node() as alice, node() as bob:
        link, recorder, arrival = await connect(alice, bob)
        count = 200_000
        left = iter(range(count))
        frame = encode(Ping(1))

        def more(connection: Connection) -> None:
            for _ in zip(range(2000), left, strict=False):
                connection.send_frame(frame)

        recorder.on_writable = more
        more(link)
        link.flush()
        await arrival.until(lambda: len(arrival.frames) == count)


async def test_a_close_is_read_with_its_code_and_reason() -> None:
    """Behind what was queued; the handler of the closing side hears of it in a later turn."""
    async with node() as alice, node() as bob:
        link, recorder, arrival = await connect(alice, bob)
        link.send_stream(0, 0, b"last words", idle=True)
        link.close(CloseCode.RETIRED, "é" * 300)
        assert link.is_closed
        assert recorder.reason is None
        link.close(CloseCode.SILENT)
        link.send_frame(b"x")
        link.send_stream(0, 0, b"x", idle=False)
        assert not link.send_datagram(b"x")
        assert link.sendable() == 0
        await arrival.until(lambda: arrival.reason is not None)
        assert arrival.streams == {0: b"last words"}
        assert arrival.reason == CloseReason(ClosedBy.PEER, CloseCode.RETIRED, "é" * 128)
        await recorder.until(lambda: recorder.reason is not None)
        assert recorder.reason == CloseReason(ClosedBy.US, CloseCode.RETIRED, "é" * 300)
        assert (recorder.closed_calls, arrival.closed_calls) == (1, 1)


async def test_an_abort_says_nothing_and_leaves_nothing() -> None:
    """The peer finds out by silence."""
    async with node() as alice, node(Config(idle_timeout=0.1)) as bob:
        link, recorder, arrival = await connect(alice, bob)
        link.abort()
        link.abort()
        assert alice.is_clean()
        await recorder.until(lambda: recorder.reason is not None)
        await arrival.until(lambda: arrival.reason is not None)
        assert arrival.reason is not None
        assert (arrival.reason.by, arrival.reason.code) == (ClosedBy.NETWORK, CloseCode.SILENT)


async def test_a_refusal_of_the_session_reaches_the_dialler() -> None:
    """Its code is the reason; a TLS 1.3 client was done before."""
    async with node() as alice, node() as bob:
        bob.accept_error = HandshakeError("no more", CloseCode.BUSY)
        recorder = Recorder()
        await alice.transport.dial(bob.address, bob.peer_id, recorder)
        await recorder.until(lambda: recorder.reason is not None)
        assert recorder.reason == CloseReason(ClosedBy.PEER, CloseCode.BUSY, "no more")
        assert bob.accepted == []
        await bob.gate.emptied()


@pytest.mark.parametrize("crash", [False, True])
async def test_a_connection_that_ends_before_its_dial_returns_is_not_returned(crash: bool) -> None:
    """Nobody would be told of its end any more."""

    def end(connection: Connection) -> None:
        if crash:
            raise RuntimeError("on purpose")
        connection.close(CloseCode.RETIRED, "early")

    async with node() as alice, node() as bob:
        recorder = Recorder()
        recorder.on_writable = end
        with pytest.raises(HandshakeError) as caught:
            await alice.transport.dial(bob.address, bob.peer_id, recorder)
        assert caught.value.code is (CloseCode.INTERNAL_ERROR if crash else CloseCode.RETIRED)
        await recorder.until(lambda: recorder.closed_calls == 1)


async def test_close_on_a_control_stream_is_a_violation() -> None:
    """QUIC has a frame of its own for that."""
    async with node() as alice, node() as bob:
        link, recorder, arrival = await connect(alice, bob)
        link.send_frame(encode(Close(0, "")))
        link.flush()
        await recorder.until(lambda: recorder.reason is not None)
        assert recorder.reason is not None
        assert (recorder.reason.by, recorder.reason.code) == (ClosedBy.PEER, CloseCode.FRAME_ERROR)
        assert arrival.closed_calls == 1
        assert arrival.reason is not None
        assert arrival.reason.by is ClosedBy.US


async def test_what_waits_below_us_is_little() -> None:
    """Control frames overtake all but 64 KiB and a window."""
    async with node() as alice, node() as bob:
        link, _, _ = await connect(alice, bob)
        sent = 0
        while (room := link.sendable()) > 0:
            size = min(room, 65536)
            link.send_stream(0, sent, bytes(size), idle=False)
            sent += size
        assert sent <= link._engine._loss.congestion_window + 2 * 65536


async def test_a_cancelled_dial_leaves_nothing_behind() -> None:
    """At any moment: nobody answers, so the dial can only be cancelled."""
    async with memory_node() as (alice, udp):
        bob, sent = Node([]), asyncio.Event()
        udp.peer = lambda _: sent.set()
        task = asyncio.create_task(alice.transport.dial(Address("quic", "192.0.2.2", 40_000), bob.peer_id, Recorder()))
        async with asyncio.timeout(10):
            await sent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert alice.is_clean()
        assert len(udp.sent) == 2


async def test_a_dial_that_is_cancelled_as_it_succeeds_tells_the_peer() -> None:
    """The handler has never seen the connection, so it is not told of its end."""
    async with node() as alice, node() as bob:
        recorder = Recorder()
        task = asyncio.create_task(alice.transport.dial(bob.address, bob.peer_id, recorder))
        recorder.on_writable = lambda _: task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert alice.is_clean()
        if bob.accepted:
            await bob.accepted[0].until(lambda: bob.accepted[0].reason is not None)
        await bob.gate.emptied()
        assert recorder.closed_calls == 0


async def test_a_dial_without_a_socket_of_that_family_fails_at_once() -> None:
    """So does one to our own key, and one without a route."""
    async with node() as alice, node() as bob:
        with pytest.raises(OSError) as caught:
            await alice.transport.dial(Address("quic", "::1", 9), bob.peer_id, Recorder())
        assert caught.value.errno == errno.EAFNOSUPPORT
        with pytest.raises(SelfDial):
            await alice.transport.dial(bob.address, alice.peer_id, Recorder())
        with pytest.raises(OSError):
            await alice.transport.dial(Address("quic", "192.0.2.1", 9), bob.peer_id, Recorder())
        assert alice.is_clean()


async def _dial_a_closed_port() -> None:
    with bound_socket() as closed:
        nowhere = Address("quic", *closed.getsockname())
    async with node() as alice, node() as bob:
        link, _, arrival = await connect(alice, bob)
        async with asyncio.timeout(10):
            for number in range(3):
                with pytest.raises(ConnectionRefusedError):
                    await alice.transport.dial(nowhere, bob.identity.generate().peer_id, Recorder())
                link.send_frame(encode(Ping(number)))
                link.flush()
                await arrival.until(lambda: arrival.frames[-1:] == [Ping(number)])  # noqa: B023 - awaited here
        assert len(alice.transport._drivers) == 1
        assert not link.is_closed


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_dial_to_a_closed_port_is_refused_at_once(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """The kernel says so, and connections on the same socket are unharmed."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_dial_a_closed_port())


async def test_a_dial_that_nobody_answers_times_out() -> None:
    """After the idle time, as an error of the network."""
    async with memory_node(Config(idle_timeout=0.05)) as (alice, _):
        bob = Node([])
        with pytest.raises(TimeoutError):
            await alice.transport.dial(Address("quic", "192.0.2.2", 40_000), bob.peer_id, Recorder())


async def test_closing_a_transport_ends_its_dials() -> None:
    """Whoever waits is told."""
    async with memory_node() as (alice, udp):
        bob, sent = Node([]), asyncio.Event()
        udp.peer = lambda _: sent.set()
        task = asyncio.create_task(alice.transport.dial(Address("quic", "192.0.2.2", 40_000), bob.peer_id, Recorder()))
        async with asyncio.timeout(10):
            await sent.wait()
        await alice.transport.aclose()
        with pytest.raises(ConnectionAbortedError):
            await task


async def test_many_half_open_handshakes_make_newcomers_prove_their_address() -> None:
    """A Retry costs us no memory, and whoever comes back with its token gets in."""
    limits = Limits(retry_above=0)
    async with node() as alice, node(Config(limits=limits)) as bob:
        link, _, arrival = await connect(alice, bob)
        assert link._engine._retry_count == 1
        assert arrival.connection is not None
        assert bob.gate.entered == 1


async def test_a_token_of_somebody_else_is_worth_nothing() -> None:
    """It opens no handshake at all."""
    async with memory_node() as (bob, udp):
        udp.deliver(*stranger_client(token=os.urandom(80)).output())
        assert bob.gate.entered == 0
        assert udp.sent == []


async def test_another_version_is_told_which_we_speak() -> None:
    """In a packet that is shorter than its question, and marked as QUIC."""
    async with memory_node() as (bob, udp):
        udp.deliver(*stranger_client(supported_versions=[0x6B3343CF]).output())
        (answer,) = udp.sent
        assert answer[0] & 0xC0 == 0xC0
        assert answer[1:5] == bytes(4)
        assert answer[-4:] == b"\0\0\0\x01"
        assert bob.gate.entered == 0


async def test_beyond_the_limit_strangers_are_ignored() -> None:
    """Per address, without a word; those who came in time go on."""
    async with memory_node(Config(handshake_timeout=0.05)) as (bob, udp):
        bob.gate._per_address = 3
        for _ in range(5):
            udp.deliver(*stranger_client().output())
        assert bob.gate.entered == 3
        await bob.gate.emptied()
        assert bob.is_clean()


async def test_handshake_buffers_are_dropped() -> None:
    """48 KiB for each connection; with a thousand idle ones that is most of what they cost."""
    async with node() as alice, node() as bob:
        link, _, arrival = await connect(alice, bob)
        arrival.connection.send_frame(encode(Ping(1)))  # type: ignore[union-attr]
        arrival.connection.flush()  # type: ignore[union-attr]
        recorder = link.handler
        assert isinstance(recorder, Recorder)
        await recorder.until(lambda: recorder.frames == [Ping(1)])
        assert not link._engine._crypto_buffers
        assert not arrival.connection._engine._crypto_buffers  # type: ignore[union-attr]
